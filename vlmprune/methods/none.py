"""none: the unpruned model, with a report; the baseline of every table."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Method


@dataclass(frozen=True)
class Unpruned(Method):
    """Drops nothing; the model runs untouched."""

    name: ClassVar[str] = "none"
