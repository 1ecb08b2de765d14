"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant tokens stay, the rest is merged into a few."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import evenly, ranking
from .declared import number
from .per_image import ImageContext, PerImage, cluster_means


@dataclass(frozen=True)
class VisionZip(PerImage):
    """Keeps the tokens the vision tower attends to most, and merges all others onto evenly sampled ones by their keys.

    Attention is the class token's in the layer whose output the model uses (without a class token: the mean received).
    A merged token is the mean of its group and stands where its target stood. The paper merges before the projector;
    here its outputs are merged, since that is where tokens are dropped.

    Args:
        contextual: fraction of the budget that is merged tokens; the paper's 64 tokens are 54 + 10.
    Raises:
        VlmpruneError: a fraction outside 0..1.
    """

    name: ClassVar[str] = "visionzip"
    reads_vision: ClassVar[bool] = True
    contextual: float = field(default=0.15625, metadata=number(float, 0, 1))  # 10 of 64

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        few = min(image.count - 1, round(self.contextual * image.count))
        tower = image.tower
        return zipped(image.hidden, tower.received, tower.keys, image.count - few, few)


def zipped(hidden: Tensor, received: Tensor, keys: Tensor, dominant: int, contextual: int) -> tuple[Tensor, Tensor]:
    """One image's dominant and contextual tokens.

    Args:
        hidden: [V, width]. received: [V], attention. keys: [V, D].
    Returns:
        [dominant + contextual] ascending indices and the hidden states there.
    """
    stay = ranking(received)[:dominant]
    free = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    free[stay] = False
    rest = free.nonzero()[:, 0]
    if not contextual or not len(rest):
        kept = stay.sort().values
        return kept, hidden[kept]
    every = evenly(contextual, len(rest), rest.device)
    unit = torch.nn.functional.normalize(keys[rest], dim=-1)
    owner = (unit @ unit[every].T).argmax(dim=1)
    owner[every] = torch.arange(contextual, device=rest.device)  # a target is its own, whatever rounding says
    states = torch.cat([hidden[stay], cluster_means(hidden[rest], owner, contextual)])
    kept, order = torch.cat([stay, rest[every]]).sort()
    return kept, states[order]
