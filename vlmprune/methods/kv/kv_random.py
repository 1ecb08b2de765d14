"""kv-random: entries of the cache at random."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...flow.score import random_scores
from ..declared import number
from .base import CacheCut, LayerEntries


@dataclass(frozen=True)
class RandomKV(CacheCut):
    """Keeps entries at random, others in every layer, drawn from `seed`, the layer and the sample's own prompt ids.

    A row is the same alone and in a batch.

    When: in comparisons: in short answers many cuts by attention are no better.

    Args:
        seed: another one draws other entries.
    """

    name: ClassVar[str] = "kv-random"
    reads_attention: ClassVar[bool] = False
    seed: int = field(default=0, metadata=number(int, 0))

    def score(self, entries: LayerEntries) -> Tensor:
        scores = torch.zeros(entries.real.shape, dtype=torch.float64)
        rows = entries.real.cpu()
        for own, real, ids in zip(scores, rows, entries.ids, strict=True):
            seed = self.seed * 1009 + entries.layer
            own[real] = random_scores(seed, ids, int(real.sum()))
        return scores[:, None].to(entries.real.device)
