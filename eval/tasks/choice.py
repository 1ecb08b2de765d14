"""Base of multiple-choice tasks: an answer is read as an option's letter and compared with the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.options import kit_or_person, read_option
from .base import PERSON, Line, Sample, Task, mean
from .readers import BadRow


def check_answer(letter: str, options: Mapping[str, str]) -> None:
    """Refuse a right answer that is no option.

    Raises:
        BadRow: it is none.
    """
    if letter not in options:
        raise BadRow(f"the field 'answer' is {letter!r}, and the options are {', '.join(options) or 'empty'}")


class MultipleChoice(Task):
    """Accuracy of the option chosen; an answer that names none is wrong and counted as unreadable.

    `official` reads answers as the benchmark's script does.

    A sample's `truth` is a letter and its `meta["options"]` the options by letter.
    """

    official: ClassVar[Any] = staticmethod(kit_or_person)  # of an answer and the options, a letter or None

    def options(self, sample: Sample) -> Mapping[str, str]:
        """The texts of the options by letter."""
        found: Mapping[str, str] = sample.meta["options"]
        return found

    def read(self, sample: Sample, answer: str) -> str | None:
        reader = read_option if self.reading == PERSON else self.official
        found: str | None = reader(answer, self.options(sample))
        return found

    def score(self, sample: Sample, parsed: Any) -> float:
        return float(parsed == sample.truth)

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        return {**super().metrics(lines), "unreadable": mean(line["parsed"] is None for line in lines)}
