"""random: a uniform sample in original order. Strong: many published methods lose to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import VlmpruneError
from ..flow.score import random_scores
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class Random(Pruner):
    """Keeps visual tokens at random, drawn from `seed` and the sample's own prompt ids.

    A row is the same alone and in a batch; another question about the same image draws other tokens.
    """

    name: ClassVar[str] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise VlmpruneError(f"seed={self.seed!r} is no seed; use an int >= 0.")

    def score(self, prompt: PruningContext) -> list[Tensor]:
        rows = zip(prompt.input_ids, prompt.valid, prompt.layouts, strict=True)
        return [random_scores(self.seed, ids[valid], layout.count) for ids, valid, layout in rows]
