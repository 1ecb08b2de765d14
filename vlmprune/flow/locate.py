"""Locate: which positions are visual tokens, which image each belongs to, and where in the image it lies.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import VlmpruneError


@dataclass(frozen=True)
class ImageGrid:
    """How the visual tokens of one image lie in it, before it is known where they stand in a prompt.

    `grid` is (t, h, w) of the base grid; `xy` [count, 2] holds each token's centre (x, y) in 0..1 image
    coordinates, NaN for tokens that show no place (newline and class tokens).
    """

    grid: tuple[int, int, int]
    xy: Tensor

    @property
    def count(self) -> int:
        return self.xy.shape[0]


@dataclass(frozen=True)
class ImageSpan:
    """One image of one sample.

    `image`: its number inside the sample; `positions` [count]: indices into the sample's visual tokens, 0..V-1;
    `grid` and `xy` as in `ImageGrid`; `kept`: the kept ones among `positions` (in a report), else None. `ends`: its
    last token is the last of the prompt, from which the next one is predicted, so that it always stays.
    """

    image: int
    positions: Tensor
    count: int
    grid: tuple[int, int, int]
    xy: Tensor
    kept: Tensor | None = None
    ends: bool = False

    def with_kept(self, kept: Tensor) -> "ImageSpan":
        """The same span with the members of `kept` (indices 0..V-1) that belong to it."""
        return replace(self, kept=kept[torch.isin(kept, self.positions)])


@dataclass(frozen=True)
class SampleLayout:
    """Where one sample's visual tokens are.

    `slots` [V]: their positions in the padded sequence 0..S-1, or, for cross-attention families, their columns
    in the cross-attention states.
    """

    slots: Tensor
    images: tuple[ImageSpan, ...]

    @property
    def count(self) -> int:
        return self.slots.shape[0]


def dealt(slots: Tensor, grids: Iterable[ImageGrid]) -> SampleLayout:
    """A sample's visual tokens at `slots` [V], its images' one behind the other."""
    spans: list[ImageSpan] = []
    start = 0
    for grid in grids:
        positions = torch.arange(start, start + grid.count)
        spans.append(ImageSpan(len(spans), positions, grid.count, grid.grid, grid.xy))
        start += grid.count
    return SampleLayout(slots, tuple(spans))


def grid_centres(h: int, w: int, t: int = 1) -> Tensor:
    """Centres (x, y) of a t x h x w grid in raster order: [t * h * w, 2] in 0..1."""
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).repeat(t, 1)


def no_place(count: int) -> Tensor:
    """Coordinates of tokens that show no place in the image: [count, 2] of NaN."""
    return torch.full((count, 2), float("nan"))


def plain_grid(h: int, w: int, t: int = 1) -> ImageGrid:
    """The usual case: one token a cell, raster order."""
    return ImageGrid((t, h, w), grid_centres(h, w, t))


def visual_runs(visual: Tensor) -> list[tuple[int, int]]:
    """Start and length of every run of True in `visual` [S]."""
    edges = torch.diff(visual.int(), prepend=visual.new_zeros(1).int(), append=visual.new_zeros(1).int())
    starts, ends = (edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()
    return [(start, end - start) for start, end in zip(starts, ends, strict=True)]


def ending(layout: SampleLayout, last: int) -> SampleLayout:
    """A sample's layout, its last image marked where the prompt's last token, at position `last`, belongs to it."""
    if not layout.count or int(layout.slots[-1]) != last:
        return layout
    return replace(layout, images=(*layout.images[:-1], replace(layout.images[-1], ends=True)))


def last_valid(valid: Tensor) -> Tensor:
    """The last prompt token of every row of a padding mask [B, S], left or right padded: [B]."""
    return (valid.int() * torch.arange(1, valid.shape[1] + 1, device=valid.device)).argmax(dim=1)


def layouts_from_mask(visual: Tensor, grids: Sequence[ImageGrid]) -> list[SampleLayout]:
    """Deal the images out to the samples in order; refused where they do not add up to the visual tokens.

    Args:
        visual: [B, S] bool on the CPU, True at visual tokens.
        grids: every image of the batch in order; each sample takes images until its visual tokens are used up.
    """
    layouts, remaining = [], list(grids)
    for row in visual:
        slots = row.nonzero()[:, 0]
        own: list[ImageGrid] = []
        while (start := sum(grid.count for grid in own)) < len(slots):
            if not remaining or start + remaining[0].count > len(slots):
                raise VlmpruneError(
                    f"The prompt has {len(slots)} visual tokens in a sample, but its images give "
                    f"{start + (remaining[0].count if remaining else 0)}; run the prompt whole if this is a piece of "
                    "it, and prepare text and images with the model's own processor."
                )
            own.append(remaining.pop(0))
        layouts.append(dealt(slots, own))
    return layouts
