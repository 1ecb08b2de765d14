"""DART (Wen et al., EMNLP 2025, arXiv 2502.11494): drop what a few pivot tokens say already."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.select import ranking
from .declared import number
from .per_image import ImageContext, PerImage, cosine, part_size


@dataclass(frozen=True)
class Dart(PerImage):
    """Keeps pivot tokens, and of the others those least similar to the pivots.

    Pivots are the visual and the question's tokens with the largest keys (L1 norm of the rotated keys over all heads,
    in the layer before). They take turns: each keeps the tokens that resemble it least, by the cosine of hidden states
    that went through the language model's last norm. With P pivots each takes 1/P of the tokens, rounded up. Text is
    never dropped, so only visual pivots count as kept.

    Departures from the official code: there the pivots come on top of the budget and rounding up may exceed it; here
    both are within `keep`, so that the last pivots take less or nothing. With `keep` = b + 4 and b a multiple of 8 it
    keeps what the official code keeps for a budget of b. Each of several images has visual pivots of its own, and
    cosines are fp64. The turns are those of the official loop, which goes over a Python set of positions.

    When: attention should not decide (it reads keys and hidden states), and the first layers may cost full price.

    Args:
        visual_pivots, text_pivots: how many of either, 4 and 4 in the paper and the code.
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
        prompt, slots = image.prompt, image.slots
        size = norms(image.prompt.keys[image.sample])
        visual = ranking(size[slots.to(size.device)])[: min(self.visual_pivots, image.count)].cpu()
        question = prompt.question(image.sample)
        text = question[ranking(size[question.to(size.device)])[: self.text_pivots].cpu()]
        pivots = torch.cat([slots[visual], text])
        # Padding must not change the turns.
        places = (prompt.valid[image.sample].cumsum(0)[pivots] - 1).tolist()
        turns = torch.stack([pivots[places.index(place)] for place in set(places)])
        hidden = prompt.hidden[image.sample]
        ends = prompt.normed(hidden[turns.to(hidden.device)])
        parts = slots.to(hidden.device).split(part_size(hidden.shape[1]))
        similarity = torch.cat([cosine(ends, prompt.normed(hidden[part])) for part in parts], dim=1)
        return spread(similarity, visual, image.count)


def norms(keys: Tensor) -> Tensor:
    """L1 norms of keys [H, S, D of a head] over all heads: [S]."""
    return keys.float().abs().sum(dim=(0, 2))


def spread(similarity: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Which `count` of an image's tokens stay: the `chosen` pivots among them, and what the pivots take.

    Args:
        similarity: [P, V], of all pivots in the order of their turns to the image's tokens.
    Returns:
        [count] ascending indices.
    """
    kept = torch.zeros(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    kept[chosen] = True
    left = count - len(chosen)
    share = math.ceil(left / len(similarity))
    for own in similarity:
        order = torch.sort(own.masked_fill(kept, float("inf")), stable=True).indices
        taken = min(share, left)
        kept[order[:taken]] = True
        left -= taken
    return kept.nonzero()[:, 0].cpu()
