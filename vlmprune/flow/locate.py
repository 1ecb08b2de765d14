"""Locate: which positions are visual tokens, which image or video each belongs to, and where in it it lies.

Shapes: B batch, S sequence, V visual tokens of a sample.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import VlmpruneError


@dataclass(frozen=True)
class ImageGrid:
    """How the visual tokens of one image or video lie in it, before it is known where they stand in a prompt.

    `grid` is (t, h, w) of the base grid; `xy` [count, 2] holds each token's centre (x, y) in 0..1 image
    coordinates, NaN for tokens that show no place (newline and class tokens). `kind` is "image" or "video"; of a video,
    `frame` [count] says which of the t frames each token shows, -1 for tokens of no frame, and `seconds` (t of them)
    when each frame is shown, None where that is not known.
    """

    grid: tuple[int, int, int]
    xy: Tensor
    kind: str = "image"
    frame: Tensor | None = None
    seconds: tuple[float, ...] | None = None

    @property
    def count(self) -> int:
        return self.xy.shape[0]


@dataclass(frozen=True)
class ImageSpan:
    """One image or video of one sample.

    `image`: its number inside the sample, images and videos counted together in the order of the text; `positions`
    [count]: indices into the sample's visual tokens, 0..V-1; `grid`, `xy`, `kind`, `frame` and `seconds` as in
    `ImageGrid`; `kept`: the kept ones among `positions` (in a report), else None. `ends`: its last token is the last of
    the prompt, from which the next one is predicted, so that it always stays.
    """

    image: int
    positions: Tensor
    count: int
    grid: tuple[int, int, int]
    xy: Tensor
    kept: Tensor | None = None
    ends: bool = False
    kind: str = "image"
    frame: Tensor | None = None
    seconds: tuple[float, ...] | None = None

    def with_kept(self, kept: Tensor) -> "ImageSpan":
        """The same span with the members of `kept` (indices 0..V-1) that belong to it."""
        return replace(self, kept=kept[torch.isin(kept, self.positions)])

    def only(self, mine: Tensor) -> "ImageSpan":
        """The same span with some of its tokens: `mine`, bool [count] or indices."""
        positions = self.positions[mine]
        frame = None if self.frame is None else self.frame[mine]
        return replace(self, positions=positions, count=len(positions), xy=self.xy[mine], frame=frame)

    @property
    def stays(self) -> Tensor:
        """Which of the span's tokens are left (in a report), else all: bool [count]."""
        if self.kept is None:
            return torch.ones(self.count, dtype=torch.bool)
        return torch.isin(self.positions, self.kept)

    @property
    def frames_kept(self) -> list[int]:
        """Of a video, how many tokens of each of its t frames were kept (in a report), else are there."""
        if self.frame is None:
            return []
        frame = self.frame[self.stays]
        return torch.bincount(frame[frame >= 0], minlength=self.grid[0]).tolist()


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
        one = ImageSpan(len(spans), positions, grid.count, grid.grid, grid.xy)
        spans.append(replace(one, kind=grid.kind, frame=grid.frame, seconds=grid.seconds))
        start += grid.count
    return SampleLayout(slots, tuple(spans))


def grid_centres(h: int, w: int, t: int = 1) -> Tensor:
    """Centres (x, y) of a t x h x w grid in raster order: [t * h * w, 2] in 0..1."""
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).repeat(t, 1)


def no_place(count: int) -> Tensor:
    """Coordinates of tokens that show no place in the image: [count, 2] of NaN."""
    return torch.full((count, 2), float("nan"))


def check_places(span: ImageSpan, what: str) -> None:
    """Refuse an image of which no token's place is known.

    Raises:
        VlmpruneError: there is none.
    """
    if bool(torch.isnan(span.xy).all()):
        raise VlmpruneError(
            f"{what} needs to know where visual tokens lie in the image, which this model's family does not declare; "
            "do without it, or register_family with its grids."
        )


def plain_grid(h: int, w: int, t: int = 1) -> ImageGrid:
    """The usual case: one token a cell, raster order."""
    return ImageGrid((t, h, w), grid_centres(h, w, t))


def video_grid(
    t: int, h: int, w: int, *, seconds: Sequence[float] | None = None, placeless: int = 0, behind: int = 0
) -> ImageGrid:
    """A video of t frames of h x w tokens, frame after frame in raster order.

    Args:
        seconds: when each frame is shown. placeless: tokens in front of those of each frame that show no place in it.
        behind: tokens behind the whole video that are of no frame.
    """
    each = torch.cat([no_place(placeless), grid_centres(h, w)])
    frame = torch.arange(t).repeat_interleave(len(each))
    xy, frame = torch.cat([each.repeat(t, 1), no_place(behind)]), torch.cat([frame, torch.full((behind,), -1)])
    return ImageGrid((t, h, w), xy, "video", frame, None if seconds is None else tuple(map(float, seconds)))


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


def shared_out(visual: Tensor, grids: Sequence[ImageGrid]) -> list[list[ImageGrid]]:
    """Deal images or videos out to the samples in order; refused where they do not add up to the visual tokens.

    Args:
        visual: [B, S] bool on the CPU, True at the tokens of these.
        grids: all of the batch in order; each sample takes some until its visual tokens are used up.
    """
    samples, remaining = [], list(grids)
    for count in visual.sum(dim=1).tolist():
        own: list[ImageGrid] = []
        while (start := sum(grid.count for grid in own)) < count:
            if not remaining or start + remaining[0].count > count:
                kinds = {grid.kind for grid in grids} or {"image"}
                raise VlmpruneError(
                    f"The prompt has {count} visual tokens in a sample, but its {' and '.join(sorted(kinds))}s give "
                    f"{start + (remaining[0].count if remaining else 0)}; run the prompt whole if this is a piece of "
                    "it, and prepare text and images with the model's own processor."
                )
            own.append(remaining.pop(0))
        samples.append(own)
    return samples


def layouts_from_mask(visual: Tensor, grids: Sequence[ImageGrid]) -> list[SampleLayout]:
    """The layouts of a batch with visual tokens [B, S] of one kind, `grids` as in `shared_out`."""
    samples = zip(visual, shared_out(visual, grids), strict=True)
    return [dealt(row.nonzero()[:, 0], own) for row, own in samples]


IMAGE, VIDEO = 1, 2  # the kinds of visual tokens where a tensor says them; text is 0


def in_text_order(kinds: Tensor, images: Sequence[ImageGrid], videos: Sequence[ImageGrid]) -> SampleLayout:
    """A sample's layout, its images and videos in the order in which the text has them.

    The tokens of a video need not touch: Qwen3-VL writes the time between its frames.

    Args:
        kinds: [S] on the CPU, the kind of each token. images, videos: what the sample has of each, in order, as many
            tokens together as there are of that kind.
    """
    slots = kinds.nonzero()[:, 0]
    order, left = kinds[slots], {IMAGE: iter(images), VIDEO: iter(videos)}
    grids: list[ImageGrid] = []
    at = 0
    while at < len(slots):
        grid = next(left[int(order[at])])
        if bool((order[at : at + grid.count] != order[at]).any()):
            raise VlmpruneError(
                f"A prompt's {grid.kind} of {grid.count} tokens is mixed with tokens of another kind; prepare text, "
                "images and videos with the model's own processor."
            )
        grids.append(grid)
        at += grid.count
    return dealt(slots, grids)
