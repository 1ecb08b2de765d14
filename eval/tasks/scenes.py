"""Our procedural scenes' test split: the bundled pair's own benchmark, with exact answers; no file is read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import ClassVar

from demos.tiny_vlm.questions import SCORED, Question, benchmark
from demos.tiny_vlm.scenes import Scene

from .base import Sample, Task
from .readers import Bad, Folder

EACH = 264  # questions a family; eight families give 2,112
APART = 100_000  # scenes of one family never meet those of another, so the answers are independent


def in_turns(count: int, split: str, *, start: int = 0, apart: int = 0) -> Iterator[tuple[Scene, Question]]:
    """`count` questions with their scenes, the scored families in turn, at most one question per family and scene.

    Args:
        start: the first scene's seed. apart: how many seeds further on each family starts than the one before it.
    """
    streams = [benchmark(one, count, split, start=start + i * apart, per_scene=1) for i, one in enumerate(SCORED)]
    return (next(stream) for stream in islice(cycle(streams), count))


class Scenes(Task):
    """Exact match over the families of questions, which take turns, so that any first part of them is balanced."""

    name = "scenes"
    by = "family"
    max_new_tokens = 8
    split: ClassVar[str] = "test"

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        for scene, question in in_turns(EACH * len(SCORED), self.split, apart=APART):
            name = f"{question.family}/{scene.seed}"
            about = {"family": question.family}
            yield Sample(name, question.text, scene.image, question.answer, str(scene.seed), about)


class ScenesValidation(Scenes):
    """The same of the validation split, for choices."""

    name = "scenes-validation"
    split = "validation"
