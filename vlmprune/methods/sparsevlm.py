"""SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): text raters rank visual tokens, dropped ones are recycled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import SampleLayout
from ..flow.select import ranking
from .base import PruningContext
from .per_image import ImageContext, PerImage, cluster_means
from .pyramiddrop import staged_counts

DEEPER = (1.0, 3.0, 7.5)  # the paper's layers 2, 6 and 15 as multiples of the first
RECYCLED = 0.3  # fraction of the dropped tokens, best scored, that are recycled
CLUSTERS = 0.1  # clusters a recycled token
NEIGHBOURS = 5  # of the density-peak clustering


@dataclass(frozen=True)
class SparseVLM(PerImage):
    """Drops in three stages by the attention of raters, and puts averages of clusters of dropped tokens back.

    Raters are the question's tokens whose similarity to the visual tokens, before layer 0, is above the average (dot
    products, softmax over the question, mean over the visual tokens). A visual token's score is the sum of its
    attention from the raters in the layer before, mean over heads. Of what a stage drops, the best 30 % are clustered
    by density peaks, one cluster for ten; each cluster's mean stands where its centre stood and counts towards the
    budget.

    `keep` is what is left after the last stage and every stage keeps the same fraction; the paper instead derives each
    stage's count from the rank of the attention matrix.

    Args:
        layer: the first stage, 2 of 32 in the paper; the others come at 3 and 7.5 times its depth.
    """

    name: ClassVar[str] = "sparsevlm"
    reads_attention: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    layer: int | float = 0.0625  # before layer 2 of 32

    def layer_index(self, layers: int) -> int:
        # As a fraction, the first stage of a shallow model would be layer 0, before which there is no attention.
        return max(1, int(self.layer * layers)) if isinstance(self.layer, float) else super().layer_index(layers)

    def stage_layers(self, layers: int, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        first = self.layer_index(layers)
        return tuple(sorted({min(layers - 1, int(first * times)) for times in DEEPER}))

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
        return recycled(hidden, received[image.span.positions.to(hidden.device)], image.count)


def query_tokens(visual: Tensor, question: Tensor) -> Tensor:
    """Which of the question's tokens [T, D] resemble the visual tokens [V, D] more than the average: indices, one at
    least."""
    similarity = torch.softmax(visual @ question.T, dim=1).mean(dim=0)
    above = (similarity > similarity.mean()).nonzero()[:, 0]
    return above if len(above) else similarity.argmax()[None]


def recycled(hidden: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What stays of one image's tokens [V, D] with scores [V]: `count` of them, some of which stand for clusters.

    Returns:
        [count] ascending indices and the states [count, D] there.
    """
    size = len(hidden)
    order = ranking(scores)
    pool = round(RECYCLED * (size - count))
    clusters = min(count - 1, round(CLUSTERS * pool))
    stay = order[: count - clusters]
    if not clusters:
        kept = stay.sort().values
        return kept.cpu(), hidden[kept]
    loose = order[count - clusters :][: max(pool, clusters)]
    centres, owner = density_peaks(hidden[loose].detach(), clusters)
    means = cluster_means(hidden[loose], owner, clusters)
    kept, place = torch.cat([stay, loose[centres]]).sort()
    return kept.cpu(), torch.cat([hidden[stay], means])[place]


def density_peaks(points: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Density-peak clustering with nearest neighbours (Du et al., 2016) of [N, D].

    A point's density falls with the mean squared distance to its nearest neighbours; centres have the largest product
    of density and distance to the nearest denser point (ties to the earlier); every point goes to its nearest centre.

    Returns:
        [clusters] indices of the centres, and [N] the cluster of every point.
    """
    distance = torch.cdist(points.double(), points.double()) / points.shape[1] ** 0.5
    near = distance.sort(dim=1).values[:, 1 : NEIGHBOURS + 1]  # the nearest of all is the point itself
    density = (-(near**2).mean(dim=1)).exp() if near.shape[1] else torch.ones(len(points), device=points.device)
    denser = density[None, :] > density[:, None]
    gap = torch.where(denser, distance, torch.full_like(distance, float("inf"))).amin(dim=1)
    gap = torch.where(gap.isinf(), distance.max(), gap)  # the densest point
    centres = torch.sort(density * gap, descending=True, stable=True).indices[:clusters]
    owner = distance[:, centres].argmin(dim=1)
    owner[centres] = torch.arange(clusters, device=points.device)
    return centres, owner
