"""Transfer: importance on one model's visual grid becomes importance on another's, through image coordinates.

A token stands for a cell of the image, and in a video for a while too. Importance is spread evenly over the cell of the
token it was measured at and collected by the cells of the other grid, so it is shared by overlapping area, and time.
Shapes: V visual tokens of an image, n of one frame, T frames.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import VlmpruneError
from .locate import ImageSpan, SampleLayout, check_places

_SAME = 1e-4  # coordinates nearer than this are one
_CHUNK = 1024  # target tokens at a time: a pair of AnyRes images has some 3,000 x 3,000 overlaps


def cell_sizes(span: ImageSpan) -> Tensor:
    """Width and height in 0..1 of the cell each token shows: the spacing of its own grid [V, 2].

    An image of several grids (a base grid and tiles) has each in raster order, so where y falls back a new one begins.
    """
    # The default precision is of all threads, and one that builds a model may have changed it just now.
    sizes = torch.tensor([1 / span.grid[2], 1 / span.grid[1]], dtype=span.xy.dtype).repeat(span.count, 1)
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
    """One image's or video's importance [V of `source`] on the tokens of `target`: [V of `target`].

    Frames lie at their seconds where both know them, else evenly over the video: a guide may see fewer of them.
    """
    if _alike(source, target):
        return scores
    for span in (source, target):
        check_places(span, "Moving a guide's importance to another grid")
    frames, to_frames = _frames(source), _frames(target)
    low, high, placed = (t.to(scores.device) for t in _boxes(source.only(frames[0])))
    mass = torch.where(placed, scores[frames.to(scores.device)], 0.0)  # [T, n]
    area = (high - low).prod(dim=1)
    density = mass / area
    to_low, to_high, to_placed = (t.to(scores.device) for t in _boxes(target.only(to_frames[0])))
    parts = []
    for at in range(0, len(to_low), _CHUNK):
        start, end = to_low[at : at + _CHUNK, None], to_high[at : at + _CHUNK, None]
        overlap = (torch.minimum(end, high) - torch.maximum(start, low)).clamp(min=0).prod(dim=2)
        parts.append(density @ overlap.T)
    each = _time_shares(source, target).to(scores) @ torch.cat(parts, dim=1)  # [T, n of the target]
    moved = scores.new_zeros(target.count)
    moved[to_frames.to(scores.device)] = torch.where(to_placed, each, 0.0)
    # A tiled target covers the image several times over.
    total = moved.sum()
    return moved * (mass.sum() / total) if total > 0 else moved


def _alike(one: ImageSpan, other: ImageSpan) -> bool:
    """Whether two spans have the same tokens at the same places and times."""
    if one.count != other.count or not torch.equal(torch.nan_to_num(one.xy), torch.nan_to_num(other.xy)):
        return False
    known = one.seconds is not None and other.seconds is not None
    return _frames(one).shape == _frames(other).shape and (not known or one.seconds == other.seconds)


def _frames(span: ImageSpan) -> Tensor:
    """The tokens of each frame of a video, of an image all: [T, n] indices into the span's tokens."""
    if span.frame is None or span.grid[0] == 1:
        return torch.arange(span.count)[None]
    shown = (span.frame >= 0).nonzero()[:, 0]
    each, rest = divmod(len(shown), span.grid[0])
    if rest or not torch.equal(span.frame[shown], torch.arange(span.grid[0]).repeat_interleave(each)):
        raise VlmpruneError(
            f"A guide's importance cannot be moved to or from a video of {span.grid[0]} frames with different numbers "
            "of tokens; use a method without a guide."
        )
    return shown.view(span.grid[0], each)


def _time_shares(source: ImageSpan, target: ImageSpan) -> Tensor:
    """What share of the time of each frame of `source` lies in each frame of `target`: [T of target, T of source]."""
    times = [torch.tensor(span.seconds or [], dtype=torch.float64) for span in (source, target)]
    numbers = [1 if span.frame is None else span.grid[0] for span in (source, target)]
    known = [len(own) == number and bool((own.diff() > 0).all()) for own, number in zip(times, numbers, strict=True)]
    if not all(known):
        times = [(torch.arange(number) + 0.5).double() / number for number in numbers]
    # A frame's time ends halfway to the next; the first and the last reach as far as the other's.
    halves = [own.diff().mean() / 2 if len(own) > 1 else torch.zeros(()) for own in times]
    begin = min(float(own[0] - half) for own, half in zip(times, halves, strict=True))
    end = max(float(own[-1] + half) for own, half in zip(times, halves, strict=True))
    edges = [torch.cat([own.new_tensor([begin]), (own[1:] + own[:-1]) / 2, own.new_tensor([end])]) for own in times]
    (low, high), (to_low, to_high) = ((own[:-1], own[1:]) for own in edges)
    overlap = (torch.minimum(to_high[:, None], high) - torch.maximum(to_low[:, None], low)).clamp(min=0)
    lengths = high - low
    return overlap / lengths if bool((lengths > 0).all()) else torch.ones_like(overlap)


def _boxes(span: ImageSpan) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper corners [V, 2] of every token's cell, and whether it shows a place [V]."""
    placed = ~torch.isnan(span.xy[:, 0])
    centre, half = torch.nan_to_num(span.xy), cell_sizes(span) / 2
    return centre - half, centre + half, placed
