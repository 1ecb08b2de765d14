"""DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): the most diverse visual tokens, whatever the question."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.greedy import lazy_greedy
from ..flow.select import evenly
from .per_image import ROUGH, WHOLE, ImageContext, PerImage, cosine, part_size, rough_unit_rows, unit_rows

_AT_ONCE = 128  # points that are compared with all others
_EXACT = 12  # decimals: equal distances must not differ by rounding


@dataclass(frozen=True)
class DivPrune(PerImage):
    """Keeps the tokens whose smallest cosine distance to each other is largest (max-min diversity, greedily).

    Written from the paper's description alone. Departures from the official code: distances are fp64 instead of the
    model's precision, which decides among nearly parallel features; ties go to the earlier token; each of several
    images has a budget of its own. It reads projected features, so `layer` is 0 by default.

    When: to start with: nothing to choose, any family, full savings, and one choice of tokens serves every question
    about an image. Where the question asks for one small thing among many, compare with methods that read it.
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
    if len(features) > WHOLE:
        return lazy_points(features, count)
    distance = (1 - cosine(features)).round_(decimals=_EXACT)
    alone = distance.clone().fill_diagonal_(float("inf"))
    chosen = [int(alone.amin(dim=1).argmax())]
    nearest = distance[chosen[0]].clone()
    for _ in range(count - 1):
        nearest[chosen[-1]] = -float("inf")  # rounding must not choose a point twice
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return torch.tensor(sorted(chosen))


def lazy_points(features: Tensor, count: int) -> Tensor:
    """What `farthest_points` chooses, without all distances."""
    rough = rough_unit_rows(features)
    first = loneliest(features, rough)
    bounds = 1 + ROUGH - (rough @ rough[first]).double()
    del rough
    chosen = torch.empty(count, features.shape[1], dtype=torch.float64, device=features.device)
    number = 0

    def worth(rows: Tensor, seen: Tensor, before: Tensor) -> Tensor:
        near = unit_rows(features[rows]) @ chosen[int(seen.min()) : number].T
        return torch.minimum(before, (1 - near.amax(dim=1)).round(decimals=_EXACT))

    def take(token: int, distance: float) -> None:
        nonlocal number
        chosen[number] = unit_rows(features[token : token + 1])[0]
        number += 1

    return lazy_greedy(bounds, count, worth, take, first)


def loneliest(features: Tensor, rough: Tensor) -> int:
    """The point farthest from its nearest neighbour, of features [V, D]; `rough`: the same at length 1 in fp32.

    A point's distance to any other is a bound on that to its nearest. So those of the largest bounds are compared with
    all, which gives all others a bound, until no bound reaches the best; what fp32 cannot decide is compared in fp64.
    """
    bounds = torch.full((len(rough),), torch.inf, device=rough.device)
    known = torch.zeros(len(rough), dtype=torch.bool, device=rough.device)
    rows = evenly(_AT_ONCE, len(rough), rough.device).unique()
    while len(rows):
        # Part by part: a product may make a copy of all of what it is given.
        near = torch.cat([rough[rows] @ part.T for part in rough.split(part_size(rough.shape[1]))], dim=1)
        near[torch.arange(len(rows), device=near.device), rows] = -torch.inf
        known[rows] = True
        bounds = torch.minimum(bounds, 1 - near.amax(dim=0))
        bounds[rows] = torch.minimum(bounds[rows], 1 - near.amax(dim=1))
        left = ~known & (bounds > bounds[known].max() - 2 * ROUGH)
        rows = bounds.masked_fill(~left, -torch.inf).topk(min(_AT_ONCE, int(left.sum()))).indices
    best = (known & (bounds > bounds[known].max() - 2 * ROUGH)).nonzero()[:, 0]
    exact = []
    for own in best.split(_AT_ONCE):
        near = cosine(features[own], features)
        near[torch.arange(len(own), device=near.device), own] = -torch.inf
        exact.append((1 - near.amax(dim=1)).round(decimals=_EXACT))
    return int(best[torch.cat(exact).argmax()])
