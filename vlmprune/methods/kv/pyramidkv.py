"""PyramidKV (Cai et al., arXiv 2406.02069): SnapKV with more entries in early layers than in late ones."""

from dataclasses import dataclass, field
from typing import ClassVar

from .snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV whose budgets fall linearly from the first layer to the last, which keeps `keep / beta`; their mean is
    `keep`.

    Departures from the official code: those of `snapkv`; and the window is a part of the budget, where that code holds
    it apart.

    When: as `snapkv`, where attention spreads in early layers and gathers in late ones.
    """

    name: ClassVar[str] = "pyramidkv"
    budgets: str = field(default="pyramid", kw_only=True)
