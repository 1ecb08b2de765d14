"""none: the unpruned model, with a report; the baseline of every table."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Method


@dataclass(frozen=True)
class Unpruned(Method):
    """Drops nothing; the model runs untouched.

    When: in every comparison, as its first row, and to get a report of an unpruned call.
    """

    name: ClassVar[str] = "none"
