"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): the most diverse visual tokens, whatever the question."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .per_image import ImageContext, PerImage, cosine


@dataclass(frozen=True)
class DivPrune(PerImage):
    """Keeps the tokens whose smallest cosine distance to each other is largest (max-min diversity, greedily).

    Written from the paper's description alone. Departures from the official code: distances are fp64 instead of the
    model's precision, which decides among nearly parallel features; ties go to the earlier token; each of several
    images has a budget of its own. It reads projected features, so `layer` is 0 by default.
    """

    name: ClassVar[str] = "divprune"

    def choose(self, image: ImageContext) -> Tensor:
        return farthest_points(image.hidden.detach(), image.count)


def farthest_points(features: Tensor, count: int) -> Tensor:
    """Greedy farthest points in cosine distance among [V, D]: [count] ascending indices, ties to the earlier one.

    The first point is the one farthest from its nearest neighbour, every next one the farthest from those chosen.
    """
    if count >= len(features):
        return torch.arange(len(features))
    distance = 1 - cosine(features)
    alone = distance.clone().fill_diagonal_(float("inf"))
    chosen = [int(alone.amin(dim=1).argmax())]
    nearest = distance[chosen[0]].clone()
    for _ in range(count - 1):
        nearest[chosen[-1]] = -float("inf")  # rounding must not choose a point twice
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return torch.tensor(sorted(chosen))
