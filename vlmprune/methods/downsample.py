"""downsample: pool the visual grid, what a smaller image would cost. Often beats pruning (VTC-Bench)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import ImageSpan, grid_centres
from ..flow.score import lattice_cells
from ..flow.select import coarser_grid
from .per_image import ImageContext, PerImage, cluster_means


@dataclass(frozen=True)
class Downsample(PerImage):
    """Average-pools every image's visual tokens over a coarser grid of the same aspect.

    Each cell's mean stands at the position of the token nearest to the cell's centre, so positions stay meaningful.
    A grid cannot have every number of cells: the largest one within the budget is taken and the report says how many
    tokens that is. Tokens that show no place (newlines) are dropped.
    """

    name: ClassVar[str] = "downsample"

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        return pool(image.hidden, image.span, image.count)


def pool(hidden: Tensor, span: ImageSpan, count: int) -> tuple[Tensor, Tensor]:
    """Pool an image to at most `count` cells: [K] ascending indices of the anchors, [K, D] the means of their cells."""
    if count >= span.count:
        return torch.arange(span.count), hidden
    rows, cols = coarser_grid(span.grid[1], span.grid[2], count)
    cells = lattice_cells(span, rows, cols)
    centres = grid_centres(rows, cols).T
    distance = ((span.xy.T[:, None, :] - centres[:, :, None]) ** 2).sum(0)  # [cells, tokens]
    distance[cells[None, :] != torch.arange(rows * cols)[:, None]] = float("inf")
    used = torch.isin(torch.arange(rows * cols), cells)
    anchors, order = distance.argmin(dim=1)[used].sort()
    placed = (cells >= 0).to(hidden.device)
    means = cluster_means(hidden[placed], cells.to(hidden.device)[placed], rows * cols)
    return anchors, means[used.to(hidden.device)][order.to(hidden.device)]
