"""Frames of a video: images that are frames of one, the tokens of each frame, and how a budget is shared over them.

Shapes: B batch, V visual tokens of a sample.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import VlmpruneError
from .locate import ImageSpan, SampleLayout
from .select import count_for, evenly

FRAMES = ("shared", "even", "text")  # how a video's budget lies over its frames
TAU = 0.02  # MMTok's temperature for cosines of visual tokens to a question's
HINT = "video_frames"  # what the argument is called that says which images are frames of a video


def joined(layouts: Sequence[SampleLayout], frames: Any) -> list[SampleLayout]:
    """Layouts in which images that are frames of a video are one video, and frames have the time they are shown at.

    Args:
        frames: per sample, in the order of its text, one entry per image or video: 0 for an image, for a video the
            number of its frames, or the seconds at which each is shown.
    Raises:
        VlmpruneError: that does not fit the images that the prompt has.
    """
    if not isinstance(frames, list | tuple) or len(frames) == 0 or len(layouts) % len(frames):
        raise _wrong(frames, f"is for a batch of {len(layouts)}")
    rows = len(layouts) // len(frames)  # beams
    return [_joined(layout, frames[i // rows], i) for i, layout in enumerate(layouts)]


def _wrong(frames: Any, why: str) -> VlmpruneError:
    return VlmpruneError(
        f"{HINT}={frames!r:.80} {why}; give a list per sample with one entry per image or video in the order of the "
        "text: 0 for an image, and the number of its frames, or a list of their seconds, for a video."
    )


def _joined(layout: SampleLayout, frames: Any, sample: int) -> SampleLayout:
    if not isinstance(frames, list | tuple):
        raise _wrong(frames, f"is not a list for sample {sample}")
    spans: list[ImageSpan] = []
    left = list(layout.images)
    for entry in frames:
        times = None
        if isinstance(entry, list | tuple) and entry and all(map(_is_time, entry)):
            times = tuple(map(float, entry))
        elif isinstance(entry, bool) or not isinstance(entry, int) or entry < 0:
            raise _wrong(frames, f"has the entry {entry!r:.40} for sample {sample}")
        number = len(times) if times is not None else entry
        native = bool(left) and left[0].kind == "video"
        taken, left = left[: 1 if native else max(1, number)], left[1 if native else max(1, number) :]
        if not taken or number != (taken[0].grid[0] if native else len(taken) if number else 0):
            raise _wrong(frames, f"does not fit the {len(layout.images)} images or videos of sample {sample}")
        one = taken[0] if native or not number else _one_video(taken, frames, sample)
        spans.append(replace(one, image=len(spans), seconds=times))
    if left:
        raise _wrong(frames, f"does not fit the {len(layout.images)} images or videos of sample {sample}")
    return replace(layout, images=tuple(spans))


def _is_time(at: Any) -> bool:
    return isinstance(at, int | float) and not isinstance(at, bool) and math.isfinite(at)


def _one_video(images: Sequence[ImageSpan], frames: Any, sample: int) -> ImageSpan:
    """Images that are the frames of a video."""
    first = images[0]
    if any(one.kind != first.kind or one.grid != first.grid or one.count != first.count for one in images):
        raise _wrong(frames, f"joins images of different sizes in sample {sample}")
    frame = torch.arange(len(images)).repeat_interleave(first.count)
    return replace(
        first,
        positions=torch.cat([one.positions for one in images]),
        count=first.count * len(images),
        grid=(len(images) * first.grid[0], *first.grid[1:]),
        xy=torch.cat([one.xy for one in images]),
        kind="video",
        frame=frame,
        ends=images[-1].ends,
    )


def by_frame(layout: SampleLayout) -> SampleLayout:
    """The layout with every frame of a video as a span of its own; tokens of no frame are in none of them."""
    return replace(layout, images=tuple(part for span in layout.images for part in frames_of(span)))


def frames_of(span: ImageSpan) -> list[ImageSpan]:
    """A video's frames as spans of their own; an image as it is."""
    shown = torch.zeros(0, dtype=torch.long) if span.frame is None else span.frame[span.frame >= 0].unique()
    return [frame_of(span, at) for at in shown.tolist()] or [span]


def frame_of(span: ImageSpan, at: int) -> ImageSpan:
    """One frame of a video as a span of its own."""
    seconds = None if span.seconds is None else span.seconds[at : at + 1]
    mine = torch.zeros(span.count, dtype=torch.bool) if span.frame is None else span.frame == at
    return replace(span.only(mine), grid=(1, *span.grid[1:]), seconds=seconds, ends=span.ends and bool(mine[-1]))


def counts_for(keep: float | int, spans: Sequence[ImageSpan], weights: Sequence[float] = ()) -> list[int]:
    """How many tokens of each span a budget keeps; the frames of a video share its budget equally, or by weights.

    Equally: a number of tokens that is no multiple of the frames is rounded down to one; where it is below them, evenly
    spaced frames keep one token each and the others none.

    Args:
        spans: of one sample, images and videos or, from `by_frame`, their frames. weights: one per span.
    """
    counts: list[int] = []
    for _, group in itertools.groupby(spans, key=lambda span: span.image):
        own = list(group)
        if weights and len(own) > 1:
            sizes, start = [span.count for span in own], len(counts)
            counts += weighted_counts(count_for(keep, sum(sizes)), sizes, weights[start : start + len(own)])
            continue
        each: list[float | int] = [keep] * len(own)
        if isinstance(keep, int) and len(own) > 1:
            each = [keep // len(own)] * len(own)
            if not each[0]:
                each = torch.bincount(evenly(keep, len(own)), minlength=len(own)).tolist()
        counts += [count_for(part, span.count) for part, span in zip(each, own, strict=True)]
    return counts


def weighted_counts(total: int, sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """How many of each frame's `sizes` tokens stay so that `total` do, in proportion to `weights` > 0.

    A frame whose part would be more than it has keeps all, and the others share the rest; parts are rounded down, and
    what is left goes to the largest remainders, of equal ones to the earliest.
    """
    full: set[int] = set()
    while True:
        rest = total - sum(sizes[i] for i in full)
        heavy = sum(weight for i, weight in enumerate(weights) if i not in full)
        parts = [float(size) if i in full else rest * weights[i] / heavy for i, size in enumerate(sizes)]
        more = {i for i, size in enumerate(sizes) if i not in full and parts[i] >= size}
        if not more:
            break
        full |= more
        if len(full) == len(sizes):
            return list(sizes)
    # A softmax that is all but 1 and 0 leaves remainders that are equal but for its last digits.
    counts = [math.floor(round(part, 6)) for part in parts]
    remainders = sorted(range(len(sizes)), key=lambda i: (round(counts[i] - parts[i], 6), i))
    for i in remainders[: total - sum(counts)]:
        counts[i] += 1
    return counts


def text_weights(frames: Sequence[Tensor], words: Tensor) -> list[float]:
    """How much of a video's budget each of its frames gets by a question: softmax(mean cosine / `TAU`).

    The cosines are those of every token of a frame to every token of the question, as X-Pool (arXiv 2203.15086) weighs
    frames by a text, without its trained heads.

    Args:
        frames: hidden states [tokens, D] of each frame. words: [T, D], those of the question.
    """
    asked = normalize(words.double(), dim=-1).mean(dim=0)
    mean = torch.stack([normalize(own.double(), dim=-1).mean(dim=0) @ asked for own in frames])
    weights: list[float] = torch.softmax(mean / TAU, dim=0).clamp(min=1e-12).tolist()
    return weights
