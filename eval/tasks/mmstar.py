"""MMStar (Chen et al., NeurIPS 2024): multiple choice that cannot be answered without the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from .base import LETTER, Hub, Sample
from .choice import MultipleChoice
from .readers import BadRow, number, text

OPTIONS = dict.fromkeys("ABCD", "")  # their texts stand inside the question


class MMStar(MultipleChoice):
    """Accuracy of the option chosen, over all and by category."""

    name = "mmstar"
    by = "category"
    files: ClassVar = {"*.parquet": "from Lin-Chen/MMStar"}
    hub = Hub("Lin-Chen/MMStar", None, "val")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        answer, category = text(row, "answer"), text(row, "category")
        if answer not in OPTIONS:
            raise BadRow(f"the field 'answer' is {answer!r}, not a letter from A to D")
        name, prompt = str(number(row, "index")), f"{text(row, 'question')}\n{LETTER}"
        yield Sample(name, prompt, row["image"], answer, name, {"category": category})

    def options(self, sample: Sample) -> Mapping[str, str]:
        return OPTIONS
