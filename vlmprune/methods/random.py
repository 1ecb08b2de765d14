"""random: a uniform sample in original order. Strong: many published methods lose to it."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..flow.score import random_scores
from .base import Pruner, PruningContext
from .declared import number


@dataclass(frozen=True)
class Random(Pruner):
    """Keeps visual tokens at random, drawn from `seed` and the sample's own prompt ids.

    A row is the same alone and in a batch; another question about the same image draws other tokens.

    When: in every comparison. A method that is not better than this one at the same layer and budget has found nothing.
    """

    name: ClassVar[str] = "random"
    seed: int = field(default=0, metadata=number(int, 0))

    def score(self, prompt: PruningContext) -> list[Tensor]:
        rows = zip(prompt.input_ids, prompt.valid, prompt.layouts, strict=True)
        return [random_scores(self.seed, ids[valid], layout.count) for ids, valid, layout in rows]
