"""OCRBench (Liu et al., 2023): 1,000 questions about text; right when a truth stands in the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.text import contains
from .base import Hub, Sample, Task, each
from .files import Folder
from .readers import Bad, Row, several, text, texts

FORMULAS = "HME100k"  # compared with case and without spaces


class OCRBench(Task):
    """Fraction of the 1,000 points."""

    name = "ocrbench"
    by = "type"
    max_new_tokens = 128
    files: ClassVar = {
        "OCRBench.json": "from OCRBench of MultimodalOCR",
        "OCRBench_Images/": "the images of OCRBench_Images.zip",
    }
    hub = Hub("echo840/OCRBench", None, "test")
    tsvs = ("OCRBench",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows, images = folder.json("OCRBench.json", list, "a list"), folder.folder("OCRBench_Images")

        def build(row: Any) -> Iterable[Sample]:
            source, kind = text(row, "dataset_name"), text(row, "type")
            image = text(row, "image_path")
            answers = row.get("answers")
            truths = texts({"answers": [answers] if isinstance(answers, str) else answers}, "answers")
            yield Sample(
                str(row.get("id")),
                text(row, "question"),
                images / image,
                truths,
                image,
                {"type": kind, "set": source},
            )

        yield from each(rows, build, "OCRBench.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        name = self.next_row()
        meta = {"type": text(row, "question_type"), "set": text(row, "dataset")}
        yield Sample(name, text(row, "question"), row["image"], texts(row, "answer"), row.get("image_name", name), meta)

    def hub_row(self, row: Row) -> dict[str, Any]:
        kind = text(row, "category")
        source = FORMULAS if kind == "Handwritten Mathematical Expression Recognition" else kind
        return {**row, "question_type": kind, "dataset": source, "answer": several(row["answer"])}

    def score(self, sample: Sample, parsed: Any) -> float:
        return contains(parsed, sample.truth, formula=sample.meta["set"] == FORMULAS)
