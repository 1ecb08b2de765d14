"""Transfer: importance on one model's visual grid becomes importance on another's, through image coordinates.

A token stands for a cell of the image. Importance is spread evenly over the cell of the token it was measured at and
collected by the cells of the other grid, so it is shared by overlapping area. Shapes: V visual tokens of an image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import VlmpruneError
from .locate import ImageSpan, SampleLayout

_SAME = 1e-4  # coordinates nearer than this are one
_CHUNK = 1024  # target tokens at a time: a pair of AnyRes images has some 3,000 x 3,000 overlaps


def cell_sizes(span: ImageSpan) -> Tensor:
    """Width and height in 0..1 of the cell each token shows: the spacing of its own grid [V, 2].

    An image of several grids (a base grid and tiles) has each in raster order, so where y falls back a new one begins.
    """
    sizes = torch.tensor([1 / span.grid[2], 1 / span.grid[1]]).repeat(span.count, 1)
    placed = (~torch.isnan(span.xy[:, 0])).nonzero()[:, 0]
    if not len(placed):
        return sizes
    starts = (torch.diff(span.xy[placed, 1]) < -_SAME).nonzero()[:, 0] + 1
    for part in torch.tensor_split(placed, starts.tolist()):
        for axis in (0, 1):
            steps = torch.diff(torch.sort(span.xy[part, axis]).values)
            steps = steps[steps > _SAME]
            if len(steps):
                sizes[part, axis] = steps.min()
    return sizes


def transfer(
    importance: Sequence[Tensor], source: Sequence[SampleLayout], target: Sequence[SampleLayout]
) -> list[Tensor]:
    """Importance of every sample's visual tokens on another model's layouts.

    Args:
        importance: per sample [V of the source].
    Returns:
        Per sample [V of the target], fp32. Each image keeps the sum of its tokens that show a place; target tokens
        that show none (newlines, class tokens) get 0, unless both layouts are equal: then importance passes as it is.
    Raises:
        VlmpruneError: a sample has another number of images for one model than for the other.
    """
    out = []
    for sample, (scores, theirs, ours) in enumerate(zip(importance, source, target, strict=True)):
        if len(theirs.images) != len(ours.images):
            raise VlmpruneError(
                f"The guide sees {len(theirs.images)} images in sample {sample} and the model {len(ours.images)}; give "
                "both the same images."
            )
        moved = scores.new_zeros(ours.count, dtype=torch.float32)
        for a, b in zip(theirs.images, ours.images, strict=True):
            moved[b.positions.to(scores.device)] = onto(scores[a.positions.to(scores.device)].float(), a, b)
        out.append(moved)
    return out


def onto(scores: Tensor, source: ImageSpan, target: ImageSpan) -> Tensor:
    """One image's importance [V of `source`] on the tokens of `target`: [V of `target`]."""
    if source.count == target.count and torch.equal(torch.nan_to_num(source.xy), torch.nan_to_num(target.xy)):
        return scores
    low, high, placed = (t.to(scores.device) for t in _boxes(source))
    mass = torch.where(placed, scores, 0.0)
    area = (high - low).prod(dim=1)
    density = mass / area
    to_low, to_high, to_placed = (t.to(scores.device) for t in _boxes(target))
    parts = []
    for at in range(0, target.count, _CHUNK):
        start, end = to_low[at : at + _CHUNK, None], to_high[at : at + _CHUNK, None]
        overlap = (torch.minimum(end, high) - torch.maximum(start, low)).clamp(min=0).prod(dim=2)
        parts.append(overlap @ density)
    moved = torch.where(to_placed, torch.cat(parts), 0.0)
    # A tiled target covers the image several times over.
    total = moved.sum()
    return moved * (mass.sum() / total) if total > 0 else moved


def _boxes(span: ImageSpan) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper corners [V, 2] of every token's cell, and whether it shows a place [V]."""
    placed = ~torch.isnan(span.xy[:, 0])
    centre, half = torch.nan_to_num(span.xy), cell_sizes(span) / 2
    return centre - half, centre + half, placed
