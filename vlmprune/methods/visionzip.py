"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant tokens stay, the rest is merged into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.select import evenly, ranking
from .merging import Merging


@dataclass(frozen=True)
class VisionZip(Merging):
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
    contextual: float = 0.15625  # 10 of 64

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.contextual, int | float) and not isinstance(self.contextual, bool)
        if not number or not 0 <= self.contextual <= 1:
            raise VlmpruneError(f"contextual={self.contextual!r:.60} is no share of the budget; use 0 to 1.")

    def merge(self, hidden: Tensor, received: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        few = min(count - 1, round(self.contextual * count))
        return zipped(hidden, received, keys, count - few, few)


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
    total = torch.zeros(contextual, hidden.shape[1], device=hidden.device).index_add(0, owner, hidden[rest].float())
    size = torch.bincount(owner, minlength=contextual)[:, None]
    states = torch.cat([hidden[stay], (total / size).to(hidden.dtype)])
    kept, order = torch.cat([stay, rest[every]]).sort()
    return kept, states[order]
