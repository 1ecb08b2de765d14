"""DART (Wen et al., EMNLP 2025, arXiv 2502.11494): drop what a few pivot tokens say already."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.select import ranking
from .declared import number
from .per_image import ImageContext, PerImage


@dataclass(frozen=True)
class Dart(PerImage):
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
    visual_pivots: int = field(default=4, metadata=number(int, 0))
    text_pivots: int = field(default=4, metadata=number(int, 0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.visual_pivots + self.text_pivots:
            raise VlmpruneError("visual_pivots=0 and text_pivots=0 leave no pivot; use 1 or more of either.")

    def choose(self, image: ImageContext) -> Tensor:
        assert image.prompt.keys is not None, "the session reads keys for every method that sets reads_keys"
        hidden, keys = image.prompt.hidden[image.sample].detach(), image.prompt.keys[image.sample]
        own = image.slots.to(hidden.device)
        pivots = hidden[image.question[ranking(norms(keys[:, image.question]))[: self.text_pivots]]]
        return spread(hidden[own], norms(keys[:, own]), pivots, image.count, self.visual_pivots)


def norms(keys: Tensor) -> Tensor:
    """L2 norms of keys [H, S, D of a head] over all heads: [S]."""
    return keys.float().pow(2).sum(dim=(0, 2)).sqrt()


def spread(hidden: Tensor, norms: Tensor, pivots: Tensor, count: int, visual_pivots: int) -> Tensor:
    """Which `count` of an image's tokens stay.

    Args:
        hidden: [V, D] of the image. norms: [V] of its keys. pivots: [P, D], hidden states of the text pivots.
    Returns:
        [count] ascending indices.
    """
    first = ranking(norms)[: min(visual_pivots, count)]
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
