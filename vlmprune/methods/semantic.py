"""semantic: clusters of what looks alike, each merged; how many by top-p (Sparse VideoGen2, 2025, arXiv 2505.18875)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.select import count_for, evenly, evenly_in_video, ranking
from .base import PruningContext
from .declared import number
from .per_image import ImageContext, PerImage, cluster_means, cosine, part_size

_NEAR = 1e-5  # of a mean's length: what fp32 may be off


@dataclass(frozen=True)
class Semantic(PerImage):
    """Merges the tokens of an image or a video into `keep` clusters by k-means, wherever and whenever they are shown.

    Each cluster becomes the mean of its tokens and takes the place of the token nearest to it. With `top_p` only those
    clusters stay that together hold so much of the question's attention, as it is estimated from their means alone: per
    word of the question a softmax of cosine / `temperature` in which a cluster counts as often as it has tokens.

    Departures from the official code: that is for models that make videos, where clusters are of the keys in each layer
    and what is attended to are their tokens; here they are of the states before the language model, and their means
    replace them. It starts from random tokens, 50 steps once and 2 for each later
    picture; here k-means starts from evenly spaced tokens and takes `steps`. Scores there are scaled dot products with
    queries; the states here are no queries, so they are cosines. Clusters that end without tokens are left out, so that
    fewer than `keep` may stay; the report says how many.

    When: a video or an image shows many things several times, at places that move.

    Args:
        steps: how often the means move.
        temperature: of the softmax that `top_p` is about.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "semantic"
    reads_text: ClassVar[bool] = True
    steps: int = field(default=3, metadata=number(int, 0))
    temperature: float = field(default=0.02, metadata=number(float, 1e-6))

    @property
    def ranks(self) -> bool:
        return True  # its clusters

    def _counts(self, prompt: PruningContext, scores: Sequence[Tensor] = ()) -> list[list[int]]:
        if self.top_p is None:
            return super()._counts(prompt)
        return [[count_for(self.keep, span.count) for span in layout.images] for layout in prompt.layouts]

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        hidden, span, count = image.hidden, image.span, image.count
        if count == span.count and self.top_p is None:
            return torch.arange(count), hidden
        first = evenly(count, span.count) if span.frame is None else evenly_in_video(span, count)
        owner = clusters(hidden.detach(), first.to(hidden.device), self.steps)
        sizes = owner.bincount(minlength=count)
        means = cluster_means(hidden, owner, count)
        places = nearest_members(hidden.detach(), means.detach(), owner)
        means, sizes = means[sizes > 0], sizes[sizes > 0]
        if self.top_p is not None:
            logits = cosine(image.words.detach(), means.detach()) / self.temperature + sizes.double().log()
            attention = torch.softmax(logits, dim=1).mean(dim=0)
            order = ranking(attention)
            # The margin is for sums whose rounding differs from that of the whole.
            enough = int((attention[order].cumsum(0) < self.top_p * (1 - 1e-9)).sum()) + 1
            some = order[: max(enough, count_for(self.floor, span.count))]
            places, means = places[some], means[some]
        places, order = places.sort()
        return places.cpu(), means[order]


def clusters(points: Tensor, first: Tensor, steps: int) -> Tensor:
    """k-means of [V, D] that starts from the tokens `first` [K]: [V], the cluster of each, ties to the earlier one.

    A cluster that has lost its tokens stays where it is.
    """
    centres = points[first].float()
    owner = _nearest(points, centres)
    for _ in range(steps):
        means = cluster_means(points, owner, len(centres)).float()
        centres = torch.where(owner.bincount(minlength=len(centres))[:, None] > 0, means, centres)
        owner = _nearest(points, centres)
    return owner


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The nearest centre of each point; what all have in common is subtracted, since fp32 has few digits."""
    middle = centres.mean(dim=0)
    centres = centres - middle
    squares = (centres**2).sum(dim=1)
    size = part_size(max(centres.shape))
    parts = points.split(size)
    return torch.cat([torch.addmm(squares, part.float() - middle, centres.T, alpha=-2).argmin(dim=1) for part in parts])


def nearest_members(points: Tensor, means: Tensor, owner: Tensor) -> Tensor:
    """Of each cluster that has tokens the one nearest to its mean, the earlier one of two: indices 0..V-1."""
    size = part_size(points.shape[1])
    parts = zip(points.split(size), owner.split(size), strict=True)
    distance = torch.cat([(part.double() - means[own].double()).norm(dim=1) for part, own in parts])
    least = distance.new_full((len(means),), torch.inf).scatter_reduce(0, owner, distance, "amin")
    # Of two tokens both are as near.
    near = distance <= (least + _NEAR * means.double().norm(dim=1))[owner]
    index = torch.arange(len(points), device=points.device).masked_fill(~near, len(points))
    first = index.new_full((len(means),), len(points)).scatter_reduce(0, owner, index, "amin")
    return first[first < len(points)]
