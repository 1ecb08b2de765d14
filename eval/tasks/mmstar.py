"""MMStar (Chen et al., NeurIPS 2024): multiple choice that cannot be answered without the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ..scorers.options import listed, mmstar_reading
from .base import LETTER, Hub, Sample
from .choice import MultipleChoice, check_answer
from .readers import Row, number, text
from .tsv import options_of

OPTIONS = dict.fromkeys("ABCD", "")  # their texts stand inside the question


class MMStar(MultipleChoice):
    """Accuracy of the option chosen, over all and by category."""

    name = "mmstar"
    by = "category"
    official = staticmethod(mmstar_reading)
    files: ClassVar = {"*.parquet": "from Lin-Chen/MMStar"}
    hub = Hub("Lin-Chen/MMStar", None, "val")
    tsvs = ("MMStar",)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        answer, category = text(row, "answer"), text(row, "category")
        check_answer(answer, OPTIONS)
        name, prompt = str(number(row, "index")), f"{text(row, 'question')}\n{LETTER}"
        yield Sample(name, prompt, row["image"], answer, name, {"category": category})

    def hub_row(self, row: Row) -> dict[str, Any]:
        options = options_of(row)
        question = f"{text(row, 'question')}\n{listed(options)}" if options else text(row, "question")
        return {**row, "question": question}

    def options(self, sample: Sample) -> Mapping[str, str]:
        return OPTIONS
