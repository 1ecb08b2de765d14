"""PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388): outliers of the tower's attention stay, the rest merges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import Selection, count_for, ranking
from .base import Prompt, Pruner


@dataclass(frozen=True)
class PruMerge(Pruner):
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

    def select(self, prompt: Prompt) -> Selection:
        assert prompt.vision is not None, "the session reads the tower for every method that sets reads_vision"
        kept, merged = [], []
        for sample, (layout, stats) in enumerate(zip(prompt.layouts, prompt.vision, strict=True)):
            hidden = prompt.sample_hidden(sample)
            anchors, states = [], []
            for span in layout.images:
                at = span.positions.to(hidden.device)
                stay = outliers(stats.received[at], count_for(self.keep, span.count), fill=self.plus)
                anchors.append(span.positions[stay.cpu()])
                states.append(gathered(hidden[at], stats.received[at], stats.keys[at], stay))
            kept.append(torch.cat(anchors) if anchors else torch.zeros(0, dtype=torch.long))
            merged.append(torch.cat(states) if states else hidden[:0])
        return Selection(kept, merged)


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
        more = most - number
        stay = torch.cat([stay, rest[((torch.arange(more, device=rest.device) + 0.5) * len(rest) / more).long()]])
    return stay.sort().values


def gathered(hidden: Tensor, received: Tensor, keys: Tensor, stay: Tensor) -> Tensor:
    """The kept tokens' states [K, width], each the attention-weighted mean of all whose key is nearest to its own."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    owner = (unit @ unit[stay].T).argmax(dim=1)
    owner[stay] = torch.arange(len(stay), device=stay.device)
    weights = received.float().clamp(min=torch.finfo(torch.float32).tiny)
    total = torch.zeros(len(stay), hidden.shape[1], device=hidden.device)
    total = total.index_add(0, owner, hidden.float() * weights[:, None])
    weight = torch.zeros(len(stay), device=hidden.device).index_add(0, owner, weights)
    return (total / weight[:, None]).to(hidden.dtype)
