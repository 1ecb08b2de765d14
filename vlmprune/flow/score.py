"""Score: one number a visual token, higher is kept; pure functions of ids, coordinates and attention statistics.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .locate import ImageSpan, SampleLayout


def random_scores(seed: int, ids: Tensor, count: int) -> Tensor:
    """Uniform random scores [count] drawn from the seed and the sample's own prompt ids [S] (padding left out).

    So a sample's choice is the same alone and anywhere in a batch, and two questions draw apart.
    """
    mixed = seed & 0xFFFFFFFF
    for token in ids.tolist():
        mixed = (mixed * 1_000_003 ^ (token + 1)) & 0xFFFFFFFFFFFFFFF
    return torch.rand(count, generator=torch.Generator().manual_seed(mixed), dtype=torch.float64)


def visual_columns(columns: Tensor, layouts: Sequence[SampleLayout]) -> list[Tensor]:
    """Column statistics [B, S] at the visual tokens of each sample: per sample [V]."""
    return [row[layout.slots.to(row.device)] for row, layout in zip(columns, layouts, strict=True)]


def lattice_cells(span: ImageSpan, rows: int, cols: int) -> Tensor:
    """The cell 0..rows*cols-1 of a rows x cols lattice over the image that each token falls in: [count], -1 nowhere."""
    placed = ~torch.isnan(span.xy[:, 0])
    xy = torch.nan_to_num(span.xy)
    col = (xy[:, 0] * cols).long().clamp(0, cols - 1)
    row = (xy[:, 1] * rows).long().clamp(0, rows - 1)
    return torch.where(placed, row * cols + col, -1)
