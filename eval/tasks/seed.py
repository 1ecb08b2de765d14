"""SEED-Bench (Li et al., CVPR 2024), its questions on single images (SEED-Image)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.options import lettered, listed
from .base import LETTER, Hub, Sample, each
from .choice import MultipleChoice
from .readers import Bad, BadRow, Folder, read_json, text, value


class SeedImage(MultipleChoice):
    """Accuracy of the option chosen."""

    name = "seed"
    by = "type"
    files: ClassVar = {
        "SEED-Bench.json": "from AILab-CVC/SEED-Bench",
        "SEED-Bench-image/": "the images of SEED-Bench-image.zip",
    }
    hub = Hub("lmms-lab/SEED-Bench", None, "test")

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

    def _sample(self, row: Mapping[str, Any], image: Any) -> Sample:
        options = lettered([str(value(row, f"choice_{letter}", (str, int, float))) for letter in "abcd"])
        if text(row, "answer") not in options:
            raise BadRow(f"the field 'answer' is {row['answer']!r}, not a letter from A to D")
        prompt = f"{text(row, 'question')}\n{listed(options)}\n{LETTER}"
        meta = {"type": str(row.get("question_type_id")), "options": options}
        name = str(value(row, "question_id", (str, int)))
        return Sample(name, prompt, image, row["answer"], str(row.get("data_id")), meta)
