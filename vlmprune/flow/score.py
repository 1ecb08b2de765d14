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


def centres(span: ImageSpan) -> Tensor:
    """Centre (t, y, x) of each token in 0..1 of the video's time and of its frame: [count, 3], NaN for no place."""
    frame = torch.zeros(span.count) if span.frame is None or span.grid[0] == 1 else span.frame
    time = torch.where(frame < 0, torch.nan, (frame + 0.5) / span.grid[0])
    return torch.cat([time[:, None], span.xy.flip(1)], dim=1)


def lattice_cells(span: ImageSpan, *lattice: int) -> Tensor:
    """The cell that each token falls in of a lattice (rows, columns) over the image, or (times, rows, columns) over the
    video: [count] numbers from 0 in raster order, -1 nowhere."""
    sizes = torch.tensor([1] * (3 - len(lattice)) + list(lattice))
    places = centres(span)
    cell = (torch.nan_to_num(places) * sizes).long().clamp(torch.zeros_like(sizes), sizes - 1)
    number = (cell[:, 0] * sizes[1] + cell[:, 1]) * sizes[2] + cell[:, 2]
    return torch.where(places.isnan().any(dim=1), -1, number)
