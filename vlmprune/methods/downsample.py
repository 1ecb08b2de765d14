"""downsample: pool the visual grid, what a smaller image would cost. Often beats pruning (VTC-Bench)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import ImageSpan, grid_centres
from ..flow.score import lattice_cells
from ..flow.select import Selection, coarser_grid, count_for
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class Downsample(Pruner):
    """Average-pools every image's visual tokens over a coarser grid of the same aspect.

    Each cell's mean stands at the position of the token nearest to the cell's centre, so positions stay meaningful.
    A grid cannot have every number of cells: the largest one within the budget is taken and the report says how many
    tokens that is. Tokens that show no place (newlines) are dropped.
    """

    name: ClassVar[str] = "downsample"

    def select(self, prompt: PruningContext) -> Selection:
        kept, merged = [], []
        for sample, layout in enumerate(prompt.layouts):
            hidden = prompt.sample_hidden(sample)
            anchors, means = [], []
            for span in layout.images:
                local, mean = pool(hidden[span.positions.to(hidden.device)], span, count_for(self.keep, span.count))
                anchors.append(span.positions[local])
                means.append(mean)
            kept.append(torch.cat(anchors) if anchors else torch.zeros(0, dtype=torch.long))
            merged.append(torch.cat(means) if means else hidden[:0])
        return Selection(kept, merged)


def pool(hidden: Tensor, span: ImageSpan, count: int) -> tuple[Tensor, Tensor]:
    """Pool one image's tokens [count, D] to at most `count` cells.

    Returns:
        [K] ascending indices into the image's tokens, the anchors, and [K, D] the means of their cells.
    """
    if count >= span.count:
        return torch.arange(span.count), hidden
    rows, cols = coarser_grid(span.grid[1], span.grid[2], count)
    cells = lattice_cells(span, rows, cols)
    centres = grid_centres(rows, cols).T
    # Means in fp32: bf16 sums over a hundred tokens lose two digits.
    index = cells.clamp(min=0).to(hidden.device)
    inside = (cells >= 0).to(hidden.device, torch.float32)
    total = torch.zeros(rows * cols, hidden.shape[1], device=hidden.device)
    total = total.index_add(0, index, hidden.float() * inside[:, None])
    number = torch.zeros(rows * cols, device=hidden.device).index_add(0, index, inside)
    distance = ((span.xy.T[:, None, :] - centres[:, :, None]) ** 2).sum(0)  # [cells, tokens]
    distance[cells[None, :] != torch.arange(rows * cols)[:, None]] = float("inf")
    used = number.cpu() > 0
    anchors, order = distance.argmin(dim=1)[used].sort()
    means = (total / number.clamp(min=1)[:, None])[used.to(hidden.device)][order.to(hidden.device)]
    return anchors, means.to(hidden.dtype)
