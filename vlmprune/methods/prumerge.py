"""PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388): outliers of the tower's attention stay, the rest merges."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import ImageSpan
from ..flow.select import evenly, ranking
from .per_image import ImageContext, PerImage, part_size, unit_rows

NEAREST = 32  # tokens that a kept one gathers; the official code for training takes 16


@dataclass(frozen=True)
class PruMerge(PerImage):
    """Keeps attention outliers (above the third quartile by 1.5 interquartile ranges), and one token made of the rest.

    How many there are is the image's own, so fewer than the budget may stay; the report says how many. To each kept
    token the 32 others with the most similar keys are added, times the attention they receive; kept tokens count among
    the others, and many gather the same. One more token is the sum of all that is not kept, times its attention.
    Attention and keys are those of the tower's last layer, whichever layer the model's features come from, with its
    heads taken as one. Departures from the official code:

    - It merges the tower's output; here the projector's is merged, since that is where tokens are dropped.
    - Here the budget is a ceiling, the one more token included; the outliers with the least attention are left out.
    - It orders tokens by attention; here they keep their order and positions. The one more token, which it puts last,
      takes the place of the most attended token that is not kept.
    - The fence is each image's own; the official code draws one for a batch of images.
    - A tower without a class token, which the official code does not have, is ranked by the mean attention received.
    - In images of fewer than 33 tokens, where the official code fails, a token gathers all others.

    When: images differ much in how full they are: how many tokens stay is each image's own.

    Args:
        adaptive: keep outliers only. False: fill the budget by attention, as the official code does for a fixed ratio.
        plus: PruMerge+: add evenly spaced tokens, about three for an outlier; without outliers, where the official code
            fails, as many as fit. With `adaptive=False` half of the budget; the official code may then keep a token
            twice. Where the budget has no room for all of them, evenly fewer.
        vision_as_one: False: read the attention that the tower computes, averaged over its heads, and keys averaged
            alike, in the layer whose output the model uses.
    """

    name: ClassVar[str] = "prumerge"
    reads_vision: ClassVar[bool] = True
    adaptive: bool = True
    plus: bool = False
    vision_as_one: bool = True

    def kept_of(self, span: ImageSpan) -> None:
        """Outliers stay, as many as there are."""

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        tower = image.tower
        stay = chosen(tower.received, image.count - 1, adaptive=self.adaptive, plus=self.plus)
        return gathered(image.hidden, tower.received, tower.keys, stay)


def outliers(received: Tensor) -> int:
    """How many of the values [V] lie above Q3 + 1.5 (Q3 - Q1)."""
    low, high = torch.quantile(received.float(), torch.tensor([0.25, 0.75], device=received.device))
    return int((received > high + 1.5 * (high - low)).sum())


def chosen(received: Tensor, most: int, *, adaptive: bool, plus: bool) -> Tensor:
    """Indices of at most `most` tokens that stay for themselves, by the attention [V] they receive."""
    size, found = len(received), outliers(received)
    number = min(most, int(size * (found / size))) if adaptive else most // 2 if plus else most  # in floats, officially
    stay = ranking(received)[:number]
    if not plus:
        return stay
    spread = found if adaptive else number
    step = int(1 / (spread / size)) if spread else 1
    start, step = (0, max(1, step // 3)) if adaptive else (step // 2, step)
    free = torch.zeros(size, dtype=torch.bool, device=received.device)
    free[start : size - 1 : step] = True
    free[stay] = False
    more = free.nonzero()[:, 0]
    left = most - number
    return torch.cat([stay, more[evenly(left, len(more), more.device)] if len(more) > left else more])


def gathered(hidden: Tensor, received: Tensor, keys: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """The places taken and the states there: those that stay [K] with what they gather, and one more of the rest.

    Returns:
        [K + 1] ascending indices and the hidden states [K + 1, width].
    """
    rest = received.clone()
    rest[stay] = 0
    unit = unit_rows(keys)
    states = [hidden[:0]]
    at_once = part_size(max(len(keys), NEAREST * hidden.shape[1]))
    for own in stay.split(at_once):
        similar = (unit[own] @ unit.T).scatter(1, own[:, None], -torch.inf)
        near = similar.topk(min(NEAREST, len(keys) - 1), dim=1).indices
        weights = received.to(similar)[near].to(hidden.device)
        others = hidden[near.to(hidden.device)].double()
        own_states = hidden[own.to(hidden.device)].double()
        states.append((own_states + (weights[:, None] @ others)[:, 0]).to(hidden.dtype))
    size = part_size(hidden.shape[1])
    parts = zip(rest.to(hidden.device).split(size), hidden.split(size), strict=True)
    states.append(sum(weight.double() @ part.double() for weight, part in parts)[None].to(hidden.dtype))
    extra = received.index_fill(0, stay, -1).argmax()
    kept, order = torch.cat([stay, extra[None]]).sort()
    return kept, torch.cat(states)[order.to(hidden.device)]
