"""SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): tokens that cover the image, weighted by their saliency."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .declared import number
from .per_image import ImageContext, PerImage, cosine


@dataclass(frozen=True)
class Scope(PerImage):
    """Keeps the tokens whose neighbourhoods cover all visual tokens, weighted by the vision tower's attention.

    Each step adds the token v with the largest sum_u max(0, cos(u, v) - covered_u) * attention_v^alpha, where covered_u
    is the largest cosine of token u to a chosen one, 0 at first. Attention is the class token's in the layer whose
    output the model uses (without a class token: the mean received). Departure from the official code: similarities
    are those of the projected features, since that is where tokens are dropped, not of the tower's.

    Args:
        alpha: exponent of the attention; 0 is coverage alone.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "scope"
    reads_vision: ClassVar[bool] = True
    alpha: float = field(default=1.0, metadata=number(float, 0))

    def choose(self, image: ImageContext) -> Tensor:
        return greedy_coverage(cosine(image.hidden.detach()), image.count, image.tower.received.double() ** self.alpha)


def greedy_coverage(similarity: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Greedy maximum of weighted coverage: [count] ascending indices 0..V-1, ties to the earlier one.

    Args:
        similarity: [U, V], of what is to be covered (rows) to what may be chosen (columns); rows are covered by their
            largest entry in a chosen column, by 0 at first. weights: [V], by which a column's gain counts.
    """
    number_of_tokens = similarity.shape[1]
    if count >= number_of_tokens:
        return torch.arange(number_of_tokens)
    covered = torch.zeros_like(similarity[:, 0])
    taken = torch.zeros(number_of_tokens, dtype=torch.bool, device=similarity.device)
    for _ in range(count):
        gain = (similarity - covered[:, None]).clamp(min=0).sum(dim=0)
        if weights is not None:
            gain = gain * weights.to(gain)
        gain = gain.masked_fill(taken, -torch.inf)
        # Without weights two tokens may gain the same but for rounding, which differs between devices.
        best = (gain >= gain.max() * (1 - 1e-9)).int().argmax()
        taken[best] = True
        covered = torch.maximum(covered, similarity[:, best])
    return taken.nonzero()[:, 0].cpu()
