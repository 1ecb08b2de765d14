"""MM-Vet (Yu et al., ICML 2024): free answers that only the official judge scores; this writes its input file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from .base import Hub, Sample, Task, each
from .files import Folder
from .readers import Bad, Row, text
from .tsv import index_of


class MMVet(Task):
    """No score: the summary's `predictions` file is what the official grader takes."""

    name = "mmvet"
    main = "unscored"
    max_new_tokens = 512
    files: ClassVar = {"mm-vet.json": "from mm-vet.zip", "images/": "the images of mm-vet.zip"}
    hub = Hub("lmms-lab/MMVet", None, "test")
    tsvs = ("MMVet",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows, images = folder.json("mm-vet.json", dict, "a table by question id"), folder.folder("images")

        def build(item: tuple[str, Any]) -> Iterable[Sample]:
            yield self._sample(item[0], item[1], images / text(item[1], "imagename"))

        yield from each(rows.items(), build, "mm-vet.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield self._sample(text(row, "question_id"), row, row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "question_id": f"v1_{index_of(row)}"}

    def _sample(self, name: str, row: Mapping[str, Any], image: Any) -> Sample:
        return Sample(name, text(row, "question"), image, text(row, "answer"), name)

    def score(self, sample: Sample, parsed: Any) -> None:
        return None
