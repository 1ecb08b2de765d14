"""downsample: pool the visual grid, what a smaller image, or fewer and smaller frames, would cost. Often beats pruning
(VTC-Bench)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import ImageSpan, check_places
from ..flow.score import centres, lattice_cells
from ..flow.select import coarser_video, count_for
from .per_image import ImageContext, PerImage, cluster_means


@dataclass(frozen=True)
class Downsample(PerImage):
    """Average-pools every image's visual tokens over a coarser grid of the same aspect, and a video's over a grid with
    fewer times too.

    Each cell's mean stands at the position of the token nearest to the cell's centre, so positions stay meaningful.
    A grid cannot have every number of cells: the largest one within the budget is taken and the report says how many
    tokens that is. Tokens that show no place (newlines) are dropped.

    When: in every comparison. Where it is as good as pruning, smaller images are better still: they save time in the
    vision tower too.
    """

    name: ClassVar[str] = "downsample"

    def kept_of(self, span: ImageSpan) -> int:
        return len(pool(torch.zeros(span.count, 1), span, count_for(self.keep, span.count))[0])

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        return pool(image.hidden, image.span, image.count)


def pool(hidden: Tensor, span: ImageSpan, count: int) -> tuple[Tensor, Tensor]:
    """Pool an image to at most `count` cells: [K] ascending indices of the anchors, [K, D] the means of their cells."""
    if count >= span.count:
        return torch.arange(span.count), hidden
    check_places(span, "Pooling")
    lattice = coarser_video(1 if span.frame is None else span.grid[0], *span.grid[1:], count)
    cells, number = lattice_cells(span, *lattice), math.prod(lattice)
    placed = (cells >= 0).nonzero()[:, 0]
    cell, sizes = cells[placed], torch.tensor(lattice)
    middle = (torch.stack(torch.unravel_index(cell, lattice), dim=1) + 0.5) / sizes
    distance = ((centres(span)[placed] - middle) ** 2).sum(dim=1)
    # Of each cell the nearest token, the earlier one of two.
    near = torch.sort(distance, stable=True).indices
    near = near[torch.sort(cell[near], stable=True).indices]
    anchors = placed[near[torch.diff(cell[near], prepend=torch.tensor([-1])) > 0]].sort().values
    means = cluster_means(hidden[placed.to(hidden.device)], cell.to(hidden.device), number)
    return anchors, means[cells[anchors].to(hidden.device)]
