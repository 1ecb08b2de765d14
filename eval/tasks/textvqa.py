"""TextVQA (Singh et al., CVPR 2019), validation split: questions about text in images, without OCR hints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.vqa import textvqa_accuracy
from .base import Hub, Sample, Task, each, short
from .files import Folder
from .readers import Bad, Row, number, read_json, several, text, texts, value
from .tsv import index_of

QUESTIONS = "TextVQA_0.5.1_val.json"


class TextVQA(Task):
    """VQA accuracy over ten people's answers."""

    name = "textvqa"
    scorer = staticmethod(textvqa_accuracy)
    files: ClassVar = {QUESTIONS: "from textvqa.org", "train_images/": "the images of train_val_images.zip"}
    hub = Hub("lmms-lab/textvqa", None, "validation")
    tsvs = ("TextVQA_VAL",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows = value(read_json(folder.file(QUESTIONS)), "data", list)
        images = folder.folder("train_images")

        def build(row: Any) -> Iterable[Sample]:
            yield self._sample(row, images / f"{text(row, 'image_id')}.jpg")

        yield from each(rows, build, QUESTIONS)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield self._sample(row, row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        answers = several(row["answer"])
        return {**row, "question_id": index_of(row), "image_id": row["image_name"], "answers": answers}

    def _sample(self, row: Mapping[str, Any], image: Any) -> Sample:
        name, prompt = str(number(row, "question_id")), short(text(row, "question"))
        return Sample(name, prompt, image, texts(row, "answers"), text(row, "image_id"))
