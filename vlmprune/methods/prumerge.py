"""PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388): outliers of the tower's attention stay, the rest merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import evenly, ranking
from .per_image import ImageContext, PerImage, cluster_means


@dataclass(frozen=True)
class PruMerge(PerImage):
    """Keeps attention outliers (above the third quartile by 1.5 interquartile ranges), at most the budget.

    How many there are is the image's own, so fewer than the budget may stay; the report says how many. Every other
    token is merged into the kept one whose key is most similar: a mean weighted by attention. The paper merges before
    the projector; here its outputs are merged, since that is where tokens are dropped.

    Args:
        plus: PruMerge+: fill the budget up with evenly spaced tokens.
    """

    name: ClassVar[str] = "prumerge"
    reads_vision: ClassVar[bool] = True
    plus: bool = False

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        tower = image.tower
        stay = outliers(tower.received, image.count, fill=self.plus)
        return stay, gathered(image.hidden, tower.received, tower.keys, stay)


def outliers(received: Tensor, most: int, *, fill: bool) -> Tensor:
    """Ascending indices of the values [V] above Q3 + 1.5 (Q3 - Q1), at least the largest and at most `most` of them.

    Args:
        fill: up to `most` with evenly spaced others.
    """
    low, high = torch.quantile(received.float(), torch.tensor([0.25, 0.75], device=received.device))
    order = ranking(received)
    number = max(1, min(most, int((received > high + 1.5 * (high - low)).sum())))
    stay = order[:number]
    if fill and number < most:
        free = torch.ones(len(received), dtype=torch.bool, device=received.device)
        free[stay] = False
        rest = free.nonzero()[:, 0]
        stay = torch.cat([stay, rest[evenly(most - number, len(rest), rest.device)]])
    return stay.sort().values


def gathered(hidden: Tensor, received: Tensor, keys: Tensor, stay: Tensor) -> Tensor:
    """The kept tokens' states [K, width], each the attention-weighted mean of all whose key is nearest to its own."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    owner = (unit @ unit[stay].T).argmax(dim=1)
    owner[stay] = torch.arange(len(stay), device=stay.device)
    weights = received.float().clamp(min=torch.finfo(torch.float32).tiny)
    return cluster_means(hidden, owner, len(stay), weights)
