"""Base of multiple-choice tasks: an answer is read as an option's letter and compared with the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..scorers.options import read_option
from .base import Line, Sample, Task, mean


class MultipleChoice(Task):
    """Accuracy of the option chosen; an answer that names none is wrong and counted as unreadable.

    A sample's `truth` is a letter and its `meta["options"]` the options by letter.
    """

    def options(self, sample: Sample) -> Mapping[str, str]:
        """The texts of the options by letter."""
        found: Mapping[str, str] = sample.meta["options"]
        return found

    def read(self, sample: Sample, answer: str) -> str | None:
        return read_option(answer, self.options(sample))

    def score(self, sample: Sample, parsed: Any) -> float:
        return float(parsed == sample.truth)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        return {**super().metrics(lines), "unreadable": mean(line["parsed"] is None for line in lines)}
