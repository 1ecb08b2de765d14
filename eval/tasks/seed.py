"""SEED-Bench (Li et al., CVPR 2024), its questions on single images (SEED-Image)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.options import listed
from .base import LETTER, Hub, Sample, each
from .choice import MultipleChoice, check_answer
from .files import Folder
from .readers import Bad, Row, is_empty, read_json, text, value
from .tsv import index_of, options_of


class SeedImage(MultipleChoice):
    """Accuracy of the option chosen."""

    name = "seed"
    by = "type"
    files: ClassVar = {
        "SEED-Bench.json": "from AILab-CVC/SEED-Bench",
        "SEED-Bench-image/": "the images of SEED-Bench-image.zip",
    }
    hub = Hub("lmms-lab/SEED-Bench", None, "test")
    tsvs = ("SEEDBench_IMG",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows = value(read_json(folder.file("SEED-Bench.json")), "questions", list)
        images = folder.folder("SEED-Bench-image")

        def build(row: Any) -> Iterable[Sample]:
            if text(row, "data_type") == "image":
                yield self._sample(row, images / text(row, "data_id"))

        yield from each(rows, build, "SEED-Bench.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        if text(row, "data_type") == "image":
            yield self._sample(row, row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        choices = {f"choice_{letter.lower()}": cell for letter, cell in options_of(row).items()}
        named = {"question_id": index_of(row), "question_type_id": row.get("category"), "data_id": row["image_name"]}
        return {**row, **named, **choices, "data_type": "image"}

    def _sample(self, row: Mapping[str, Any], image: Any) -> Sample:
        cells = {letter: row.get(f"choice_{letter.lower()}") for letter in "ABCD"}
        options = {letter: str(cell) for letter, cell in cells.items() if not is_empty(cell)}
        check_answer(text(row, "answer"), options)
        prompt = f"{text(row, 'question')}\n{listed(options)}\n{LETTER}"
        meta = {"type": str(row.get("question_type_id")), "options": options}
        name = str(value(row, "question_id", (str, int)))
        return Sample(name, prompt, image, row["answer"], str(row.get("data_id")), meta)
