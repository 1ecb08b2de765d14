"""easy-VQA's test split, from the package `easy-vqa` on PyPI: one shape on a 64 x 64 image, 13 answers."""

from __future__ import annotations

from collections.abc import Iterator

from vlmprune.errors import VlmpruneError

from .base import Sample, Task
from .files import Folder
from .readers import Bad


class EasyVQA(Task):
    """Exact match; the question is asked as it is, since the bundled pair knows few other words."""

    name = "easy-vqa"
    max_new_tokens = 4

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        try:
            import easy_vqa
        except ImportError:
            raise VlmpruneError("The task 'easy-vqa' reads the package easy-vqa; install vlmprune[train].") from None
        questions, answers, images = easy_vqa.get_test_questions()
        paths = easy_vqa.get_test_image_paths()
        for at, (question, answer, image) in enumerate(zip(questions, answers, images, strict=True)):
            yield Sample(str(at), question, folder.path / paths[image], answer, str(image))
