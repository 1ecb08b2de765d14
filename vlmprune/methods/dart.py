"""DART (Wen et al., EMNLP 2025, arXiv 2502.11494): drop what a few pivot tokens say already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.select import Selection, count_for, ranking
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class Dart(Pruner):
    """Keeps pivot tokens, and of the others those least similar to the pivots.

    Pivots are the visual and the question's tokens with the largest keys (L2 norm over all heads in the layer before;
    it does not change with the rotary position). They take turns in order: each keeps an equal part of the tokens
    whose hidden states have the smallest cosine similarity to its own. Text is never dropped, so only visual pivots
    count as kept.

    Args:
        visual_pivots, text_pivots: how many of either, 4 and 4 in the paper.
    Raises:
        VlmpruneError: a negative number of pivots, or none at all.
    """

    name: ClassVar[str] = "dart"
    reads_keys: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    layer: int | float = 2
    visual_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("visual_pivots", "text_pivots"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise VlmpruneError(f"{name}={value!r:.60} is no number of pivots; use an int of 0 or more.")
        if min(self.visual_pivots, self.text_pivots) < 0 or not self.visual_pivots + self.text_pivots:
            raise VlmpruneError(
                f"visual_pivots={self.visual_pivots!r} and text_pivots={self.text_pivots!r} leave no pivot; use 0 or "
                "more of each and one at least."
            )

    def select(self, prompt: PruningContext) -> Selection:
        assert prompt.keys is not None, "the session reads keys for every method that sets reads_keys"
        norms = prompt.keys.float().pow(2).sum(dim=(1, 3)).sqrt()  # [B, S]
        kept = []
        for sample, layout in enumerate(prompt.layouts):
            hidden = prompt.hidden[sample].detach()
            slots = layout.slots.to(hidden.device)
            words = prompt.question(sample).to(hidden.device)
            pivots = hidden[words[largest(norms[sample, words], self.text_pivots)]]
            parts = []
            for span in layout.images:
                own = slots[span.positions.to(hidden.device)]
                count = count_for(self.keep, span.count)
                chosen = spread(hidden[own], norms[sample, own], pivots, count, self.visual_pivots)
                parts.append(span.positions[chosen])
            kept.append(torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long))
        return Selection(kept)


def largest(values: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest values, largest first, ties to the earlier one."""
    return ranking(values)[:count]


def spread(hidden: Tensor, norms: Tensor, pivots: Tensor, count: int, visual_pivots: int) -> Tensor:
    """Which `count` of an image's tokens stay.

    Args:
        hidden: [V, D] of the image. norms: [V] of its keys. pivots: [P, D], hidden states of the text pivots.
    Returns:
        [count] ascending indices.
    """
    first = largest(norms, min(visual_pivots, count))
    kept = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    kept[first] = True
    unit = torch.nn.functional.normalize(hidden.float(), dim=-1)
    every = torch.cat([unit[first], torch.nn.functional.normalize(pivots.float(), dim=-1)])
    left = count - len(first)
    for at, pivot in enumerate(every):
        share = left // len(every) + (at < left % len(every))
        similarity = (unit @ pivot).masked_fill(kept, float("inf"))
        kept[torch.sort(similarity, stable=True).indices[:share]] = True
    return kept.nonzero()[:, 0].cpu()
