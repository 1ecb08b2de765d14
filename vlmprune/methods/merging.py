"""Base of methods that keep some tokens by what the vision tower says and merge the others into them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import Selection, count_for
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class Merging(Pruner):
    """One image at a time: a subclass says in `merge` what stays of it and what stands there."""

    reads_vision: ClassVar[bool] = True

    def select(self, prompt: PruningContext) -> Selection:
        assert prompt.vision is not None, "the session reads the tower for every method that sets reads_vision"
        kept, merged = [], []
        for sample, (layout, stats) in enumerate(zip(prompt.layouts, prompt.vision, strict=True)):
            hidden = prompt.sample_hidden(sample)
            anchors, states = [], []
            for span in layout.images:
                at = span.positions.to(hidden.device)
                count = count_for(self.keep, span.count)
                stay, state = self.merge(hidden[at], stats.received[at], stats.keys[at], count)
                anchors.append(span.positions[stay.cpu()])
                states.append(state)
            kept.append(torch.cat(anchors) if anchors else torch.zeros(0, dtype=torch.long))
            merged.append(torch.cat(states) if states else hidden[:0])
        return Selection(kept, merged)

    def merge(self, hidden: Tensor, received: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """One image's tokens after merging.

        Args:
            hidden: [V, width]. received: [V], attention in the tower. keys: [V, D], the tower's. count: the budget.
        Returns:
            [K] ascending indices 0..V-1 with K <= count, and the hidden states there, [K, width].
        """
        raise NotImplementedError(f"{type(self).__name__} needs merge()")
