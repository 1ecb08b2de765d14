"""VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): dominant tokens stay, the rest is merged into a few."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import ranking
from .declared import number
from .per_image import ImageContext, PerImage, cluster_means, cosine


@dataclass(frozen=True)
class VisionZip(PerImage):
    """Keeps the tokens the vision tower attends to most, and merges all others onto every n-th of them by their keys.

    Attention is the class token's in the layer whose output the model uses, keys are those of that layer, both averaged
    over heads. What is merged onto a target is added to it as a mean. Departures from the official code:

    - It merges the tower's output; here the projector's is merged, since that is where tokens are dropped.
    - It keeps the class token too, as one of the dominant ones. Here that is no visual token, so one more patch stays.
    - It puts merged tokens behind the others; here each stands where its target stood, at the original position.
    - A tower without a class token ranks by the mean attention received, which the paper describes.

    When: the tower has a class token, and what is dropped should leave a trace: the rest is merged, not lost. As it
    works before the language model, it also suits serving engines.

    Args:
        contextual: fraction of the budget that is merged tokens; the paper's 64 tokens are 54 + 10.
        average: a merged token is the mean of its target and all that is merged onto it, not target plus mean, and so
            keeps the scale of the others.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "visionzip"
    reads_vision: ClassVar[bool] = True
    contextual: float = field(default=0.15625, metadata=number(float, 0, 1))  # 10 of 64
    average: bool = False

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        few = min(image.count - 1, round(self.contextual * image.count))
        tower = image.tower
        return zipped(image.hidden, tower.received, tower.keys, image.count - few, contextual=few, average=self.average)


def zipped(
    hidden: Tensor, received: Tensor, keys: Tensor, dominant: int, *, contextual: int, average: bool = False
) -> tuple[Tensor, Tensor]:
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
    if not contextual:
        kept = stay.sort().values
        return kept, hidden[kept]
    targets = rest[:: len(rest) // contextual][:contextual]
    free[targets] = False
    others = free.nonzero()[:, 0]
    owner = cosine(keys[others], keys[targets]).argmax(dim=1)
    if average:
        own = torch.arange(contextual, device=owner.device)
        merged = cluster_means(hidden[torch.cat([targets, others])], torch.cat([own, owner]), contextual)
    else:
        merged = hidden[targets] + cluster_means(hidden[others], owner, contextual)
    kept, order = torch.cat([stay, targets]).sort()
    return kept, torch.cat([hidden[stay], merged])[order]
