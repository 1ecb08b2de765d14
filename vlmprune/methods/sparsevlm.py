"""SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): text raters rank visual tokens, dropped ones are recycled."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import SampleLayout
from ..flow.select import ranking
from .base import PruningContext
from .declared import number
from .per_image import ImageContext, PerImage, cluster_means, distances, part_size
from .pyramiddrop import staged_counts

LATER = (7 / 3, 16 / 3)  # the official code drops behind layers 2, 6 and 15: before 3, 7 and 16
RECYCLED = 0.3  # fraction of the dropped tokens, best scored, that are recycled
CLUSTERS = 0.1  # clusters a recycled token
_EXACT = 12  # decimals: two points alone are equally dense, and must not differ by rounding


@dataclass(frozen=True)
class SparseVLM(PerImage):
    """Drops in three stages by the attention of raters, and puts averages of clusters of dropped tokens back.

    Raters are the question's tokens whose similarity to the visual tokens, before layer 0, is above the average (dot
    products, softmax over the question, mean over the visual tokens). A visual token's score is the sum of its
    attention from the raters in the layer before, mean over heads. Of what a stage drops, the best 30 % and one more
    are clustered by density peaks, one cluster for ten and one more; each stands for its mean.

    Departures from the official code: `keep` is what is left after the last stage, clusters included, and every stage
    keeps the same fraction; that code has lists of counts, and clusters on top (the paper: the rank of the attention
    matrix). A cluster's mean stands where its centre stood, not behind the tokens that stay. A budget too small for all
    clusters has fewer. Densities carry no noise against ties. Each of several images has a budget of its own.

    When: as PyramidDrop, where the question's words should rank and dropped tokens should leave a trace.

    Args:
        layer: the first stage, 3 of 32 in the official code; the others come at 7/3 and 16/3 of its depth.
        neighbours: how many of its nearest points, itself included, make a point's density; 0 for as many as there are
            clusters, as in published versions of the official code.
    """

    name: ClassVar[str] = "sparsevlm"
    reads_attention: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    layer: int | float = 0.09375  # before layer 3 of 32
    neighbours: int = field(default=5, metadata=number(int, 0))

    def layer_index(self, layers: int) -> int:
        # As a fraction, the first stage of a shallow model would be layer 0, before which there is no attention.
        return max(1, int(self.layer * layers)) if isinstance(self.layer, float) else super().layer_index(layers)

    def stage_layers(self, layers: int, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        first = self.layer_index(layers)
        return tuple(sorted({min(layers - 1, round(first * times)) for times in (1, *LATER)}))

    def query_positions(self, prompt: PruningContext) -> list[Tensor]:
        out = []
        for sample, layout in enumerate(prompt.layouts):
            words = prompt.question(sample)
            if layout.count:
                question = prompt.hidden[sample, words.to(prompt.hidden.device)].detach().float()
                words = words[query_tokens(prompt.sample_hidden(sample).detach().float(), question).cpu()]
            out.append(words)
        return out

    def _counts(self, prompt: PruningContext, scores: Sequence[Tensor] = ()) -> list[list[int]]:
        return staged_counts(self.keep, prompt)

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        hidden = image.hidden
        received = image.prompt.received[image.sample]
        return recycled(hidden, received[image.span.positions.to(hidden.device)], image.count, self.neighbours)


def query_tokens(visual: Tensor, question: Tensor) -> Tensor:
    """Which of the question's tokens [T, D] resemble the visual tokens [V, D] more than the average: indices, one at
    least."""
    similarity = torch.softmax(visual @ question.T, dim=1).mean(dim=0)
    above = (similarity > similarity.mean()).nonzero()[:, 0]
    return above if len(above) else similarity.argmax()[None]


def recycled(hidden: Tensor, scores: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """What stays of one image's tokens [V, D] with scores [V]: `count` of them, some of which stand for clusters.

    Returns:
        [count] ascending indices and the states [count, D] there.
    """
    size, order = len(hidden), ranking(scores)
    stay, pool, clusters = recycling(size, count)
    kept = order[:stay]
    if not clusters:
        kept = kept.sort().values
        return kept.cpu(), hidden[kept]
    loose = order[stay : stay + pool]
    centres, owner = density_peaks(hidden[loose].detach(), clusters, neighbours)
    means = cluster_means(hidden[loose], owner, clusters)
    places, at = torch.cat([kept, loose[centres]]).sort()
    return places.cpu(), torch.cat([hidden[kept], means])[at]


def recycling(size: int, count: int) -> tuple[int, int, int]:
    """How many of `size` tokens stay as they are, how many are clustered, and the number of clusters.

    The first and the last number make `count`; the others follow from how many do not stay, as in the official code.
    """
    if count == size:
        return size, 0, 0
    for stay in range(count - 1, 0, -1):
        pool = min(size - stay, int(RECYCLED * (size - stay)) + 1)
        clusters = min(pool, int(CLUSTERS * pool) + 1)
        if stay + clusters == count or stay == 1:
            return stay, pool, min(clusters, count - stay)
    return count, 0, 0


def density_peaks(points: Tensor, clusters: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Density-peak clustering with nearest neighbours (Du et al., 2016) of [N, D].

    A point's density falls with the mean squared distance to its nearest points, itself the first of them; centres have
    the largest product of density and distance to the nearest denser point (ties to the earlier); every point goes to
    its nearest centre.

    Returns:
        [clusters] indices of the centres, and [N] the cluster of every point.
    """
    points = points.double()

    def to(others: Tensor, part: slice) -> Tensor:
        return distances(points[part], others) / points.shape[1] ** 0.5

    size = part_size(len(points))
    parts = [slice(at, at + size) for at in range(0, len(points), size)]
    few = min(len(points), neighbours or clusters)
    near = torch.cat([to(points, part).topk(few, dim=1, largest=False).values for part in parts])
    density = (-(near**2).mean(dim=1)).exp().round(decimals=_EXACT)
    gaps, farthest = [], density.new_zeros(())
    for part in parts:
        distance = to(points, part)
        farthest = torch.maximum(farthest, distance.max())
        denser = density[None, :] > density[part, None]
        gaps.append(distance.masked_fill(~denser, float("inf")).amin(dim=1))
    gap = torch.cat(gaps)
    gap = torch.where(gap.isinf(), farthest, gap)  # the densest point
    centres = torch.sort((density * gap).round(decimals=_EXACT), descending=True, stable=True).indices[:clusters]
    owner = torch.cat([to(points[centres], part).argmin(dim=1) for part in parts])
    owner[centres] = torch.arange(clusters, device=points.device)
    return centres, owner
