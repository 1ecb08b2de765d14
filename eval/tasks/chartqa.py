"""ChartQA (Masry et al., ACL 2022), test split: questions on charts, written by people and by a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.text import relaxed_accuracy, relaxed_by_person
from .base import Hub, Sample, Task, each, short
from .files import Folder
from .readers import Bad, Row, several, text

SPLITS = ("human", "augmented")


class ChartQA(Task):
    """Relaxed accuracy: numbers may be off by 5 %."""

    name = "chartqa"
    scorer = staticmethod(relaxed_accuracy)
    by_person = staticmethod(relaxed_by_person)
    by = "split"
    files: ClassVar = {
        **{f"test/test_{split}.json": "from the ChartQA Dataset folder" for split in SPLITS},
        "test/png/": "the charts of its test split",
    }
    hub = Hub("lmms-lab/ChartQA", None, "test")
    tsvs = ("ChartQA_TEST",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        charts = folder.folder("test/png")
        for split in SPLITS:
            name = f"test/test_{split}.json"
            rows = folder.json(name, list, "a list")

            def build(numbered: tuple[int, Any], split: str = split) -> Iterable[Sample]:
                at, row = numbered
                image = text(row, "imgname")
                question, label = text(row, "query"), text(row, "label")
                yield Sample(f"{split}/{at}", short(question), charts / image, label, image, {"split": split})

            yield from each(enumerate(rows), build, name)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        split = text(row, "type").removesuffix("_test").removeprefix("test_")
        name = f"{split}/{self.next_row()}"
        group = row.get("image_name", name)
        yield Sample(name, short(text(row, "question")), row["image"], text(row, "answer"), group, {"split": split})

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "type": text(row, "split"), "answer": several(row["answer"])[0]}
