"""MMStar (Chen et al., NeurIPS 2024): multiple choice that cannot be answered without the picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.options import read_option
from .base import LETTER, Hub, Line, Sample, Task, mean, mean_by
from .readers import Bad, BadRow, Folder, number, text

OPTIONS = dict.fromkeys("ABCD", "")  # their texts stand inside the question


class MMStar(Task):
    """Accuracy of the option chosen, over all and by category."""

    name = "mmstar"
    files: ClassVar = {"*.parquet": "from Lin-Chen/MMStar"}
    hub = Hub("Lin-Chen/MMStar", None, "val")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        folder.file("*.parquet")  # says what is missing: with a parquet file there, this is not called
        yield from ()

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        answer, category = text(row, "answer"), text(row, "category")
        if answer not in OPTIONS:
            raise BadRow(f"the field 'answer' is {answer!r}, not a letter from A to D")
        name, prompt = str(number(row, "index")), f"{text(row, 'question')}\n{LETTER}"
        yield Sample(name, prompt, row["image"], answer, name, {"category": category})

    def read(self, sample: Sample, answer: str) -> str | None:
        return read_option(answer, OPTIONS)

    def score(self, sample: Sample, parsed: Any) -> float:
        return float(parsed == sample.truth)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        return {"accuracy": mean(line["score"] for line in lines), **mean_by(lines, "category")}
