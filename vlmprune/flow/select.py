"""Select: a budget becomes a count, and scores become kept indices; per image, in original order.

Shapes: V visual tokens of a sample, K kept, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..ops.top_k import top_k
from .locate import ImageSpan, SampleLayout

UNRANKED = -(1 << 62)  # no index that a method could mean: stands for those of scores that hold NaN


@dataclass(frozen=True)
class Selection:
    """What a pruner decided.

    `kept`: per sample [K], ascending indices into the sample's visual tokens. `merged`: for methods that merge
    tokens, per sample [K, D], the hidden states that take the kept tokens' places.
    """

    kept: list[Tensor]
    merged: list[Tensor] | None = None


def check_keep(keep: float | int, name: str = "keep") -> float | int:
    """Validate a budget, called `name`: a fraction in (0, 1] as float, or a number of tokens >= 1 as int.

    Raises:
        VlmpruneError: anything else.
    """
    remedy = "use a float in (0, 1] for a fraction of each image's visual tokens or an int >= 1 for tokens per image"
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise VlmpruneError(f"{name}={keep!r} is no number; {remedy}.")
    in_range = keep >= 1 if isinstance(keep, int) else 0.0 < keep <= 1.0
    if not in_range:  # NaN fails both comparisons
        raise VlmpruneError(f"{name}={keep!r} is out of range; {remedy}.")
    return keep


def count_for(keep: float | int, visual: int) -> int:
    """How many of an image's `visual` tokens a budget keeps: the only place where a budget becomes a count.

    A float is a fraction: max(1, round-half-up(keep * visual)). An int is that many tokens, capped at `visual`.
    """
    if isinstance(keep, int):
        return min(keep, visual)
    # 0.29 * 50 is 14.499999999999998 in binary: round the product to 9 digits so that half-up sees 14.5.
    return min(visual, max(1, math.floor(round(keep * visual, 9) + 0.5)))


def top_p_counts(
    scores: Tensor, images: Sequence[ImageSpan], top_p: float, floor: float | int, keep: float | int
) -> list[int]:
    """How many of each image's best tokens it takes to hold `top_p` of its scores' sum, from `floor` to `keep`.

    Args:
        scores: [V], one sample's; those below zero add nothing.
    Raises:
        VlmpruneError: no score of an image is above zero, so they are no weights.
    """
    counts = []
    for span in images:
        weights = scores[span.positions.to(scores.device)].double().clamp(min=0).sort(descending=True).values
        held = weights.cumsum(0)
        least, most = count_for(floor, span.count), count_for(keep, span.count)
        # One wait for a GPU; the margin is for sums whose rounding differs from that of the whole.
        total, enough = torch.stack([held[-1], (held < top_p * held[-1] * (1 - 1e-9)).sum() + 1.0]).tolist()
        if not total > 0:
            raise VlmpruneError(
                f"top_p={top_p!r} takes the scores as weights, and none of image {span.image} is above zero; use a "
                "method whose scores are, such as one that ranks by attention, or keep alone."
            )
        counts.append(min(most, max(least, int(enough))))
    return counts


def with_last(selection: Selection, layouts: Sequence[SampleLayout], hidden: Tensor) -> Selection:
    """A selection in which the last token of every prompt stays, also where it is visual.

    Whatever the method, where it kept others it gives up the last of these in the same image, so the count stays; a
    merged state that stood there goes with it, and the last token keeps its own.

    Args:
        hidden: [B, S, D], the states that the layouts' slots point into.
    """
    kept, merged = list(selection.kept), None if selection.merged is None else list(selection.merged)
    for sample, layout in enumerate(layouts):
        last = layout.count - 1
        if not layout.count or not layout.images[-1].ends or int(kept[sample][-1]) == last:
            continue
        kept[sample] = torch.cat([kept[sample][:-1], torch.tensor([last])])
        if merged is not None:
            own = hidden[sample, int(layout.slots[-1])]
            states = merged[sample]
            merged[sample] = torch.cat([states[:-1], own[None].to(states.device, states.dtype)])
    return Selection(kept, merged)


def top_k_per_image(scores: Tensor, images: Sequence[ImageSpan], counts: Sequence[int]) -> Tensor:
    """The `counts` highest scores of each image; ties go to the earlier token.

    The last token of a prompt, where it is visual, is ranked first.

    Args:
        scores: [V], one sample's.
    Returns:
        [K] ascending indices 0..V-1.
    Raises:
        VlmpruneError: a score is NaN. Asking a GPU would wait for it, so there the indices are all `UNRANKED`.
    """
    if scores.device.type == "cpu":
        check_ranked(scores)
    if ending := [int(span.positions[-1]) for span in images if span.ends]:
        scores = scores.clone()
        scores[ending] = math.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).max
    kept = top_k(scores, [span.positions for span in images], counts)
    return kept if scores.device.type == "cpu" else torch.where(torch.isnan(scores).any(), UNRANKED, kept)


def ranking(scores: Tensor) -> Tensor:
    """Indices of scores [V] from the highest down; ties go to the earlier one.

    Raises:
        VlmpruneError: a score is NaN, which would make the choice arbitrary.
    """
    check_ranked(scores)
    return torch.sort(scores, descending=True, stable=True).indices


def check_ranked(values: Tensor) -> None:
    """Refuse scores with NaN, or the indices made of such scores on a GPU."""
    if bool((torch.isnan(values) if values.is_floating_point() else values == UNRANKED).any()):
        raise VlmpruneError(
            "The scores of the visual tokens hold NaN, so no ranking exists; check the model's precision (float16 "
            "overflows in some models) or the method's score function."
        )


def every_nth(images: Sequence[ImageSpan], counts: Sequence[int]) -> Tensor:
    """Evenly spaced tokens, so many of every image in raster order or of every video: [K] ascending indices 0..V-1."""
    kept = [torch.zeros(0, dtype=torch.long)]
    for span, count in zip(images, counts, strict=True):
        some = evenly(count, span.count) if span.frame is None else evenly_in_video(span, count)
        kept.append(span.positions[some])
    return torch.cat(kept)


_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, less their whole part, never come near each other


def evenly_in_video(span: ImageSpan, count: int) -> Tensor:
    """`count` tokens of a video, or of one frame of it, evenly over time, height and width: ascending indices [count].

    Frames share them evenly, and so do the rows of a frame and the columns of a row; where each begins moves on from
    frame to frame and from row to row. Every n-th of all tokens would be the same column, or even the same place, of
    every frame wherever n is a multiple of the width. Tokens of no place come last.
    """
    assert span.frame is not None, "it is a video"
    _, h, w = span.grid
    known = (span.frame >= 0) & ~torch.isnan(span.xy[:, 0])
    placed, rest = known.nonzero()[:, 0], (~known).nonzero()[:, 0]
    shown = span.frame[placed].unique()
    if len(placed) != len(shown) * h * w or not len(shown):  # nothing is known of rows and columns
        return evenly(count, span.count)
    take = min(count, len(placed))
    quota = torch.bincount(evenly(take, len(placed)) // (h * w), minlength=len(shown))
    single = int(shown[0]) if len(shown) == 1 else 0  # the pattern of one frame is the one it has among all
    frame, i = _counted(quota)
    begin = ((quota > 0).cumsum(0) - 1 + single) * _GOLDEN % 1.0
    row = ((i + begin[frame].double()) * h / quota[frame]).long()
    _, sizes = torch.unique_consecutive(frame * h + row, return_counts=True)
    line, j = _counted(sizes)
    begin = (torch.arange(len(sizes)).double() + single * len(sizes)) * _GOLDEN % 1.0
    column = ((j + begin[line]) * w / sizes[line]).long()
    return torch.cat([placed[(frame * h + row) * w + column], rest[: count - take]]).sort().values


def _counted(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Of every member of groups of these sizes, one behind the other, its group and its number in it."""
    group = torch.arange(len(sizes)).repeat_interleave(sizes)
    return group, torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group]


def evenly(count: int, size: int, device: torch.device | None = None) -> Tensor:
    """`count` evenly spaced indices 0..size-1, ascending: the middles of as many equal parts."""
    return ((torch.arange(count, device=device) + 0.5) * size / count).long()


def coarser_video(t: int, h: int, w: int, count: int) -> tuple[int, int, int]:
    """The grid (t', h', w') of at most `count` cells that is largest without distorting the video: frames as in
    `coarser_grid`, and as much less time as there is less of each side, within a factor 1.5."""

    def distortion(grid: tuple[int, int, int]) -> float:
        return abs(math.log(grid[0] / t) - math.log(grid[1] * grid[2] / (h * w)) / 2)

    grids = [(times, *coarser_grid(h, w, count // times)) for times in range(1, min(t, count) + 1)]
    faithful = [grid for grid in grids if distortion(grid) <= math.log(1.5)] or [min(grids, key=distortion)]
    return max(faithful, key=lambda grid: (math.prod(grid), -round(distortion(grid), 9)))


def coarser_grid(h: int, w: int, count: int) -> tuple[int, int]:
    """The grid (h', w') with h' <= h, w' <= w and h' * w' <= count that is largest without distorting the image.

    Only grids whose aspect is within a factor 1.5 of h : w count (a 1 x 13 strip of a square image shows nothing);
    where there is none, the least distorted one.
    """

    def distortion(grid: tuple[int, int]) -> float:
        return abs(math.log((grid[0] * w) / (grid[1] * h)))

    grids = [(rows, min(w, count // rows)) for rows in range(1, min(h, count) + 1)]
    faithful = [grid for grid in grids if distortion(grid) <= math.log(1.5)] or [min(grids, key=distortion)]
    # Equally large and equally distorted grids (3 x 4, 4 x 3 of a square): the wider one.
    return max(faithful, key=lambda grid: (grid[0] * grid[1], -round(distortion(grid), 9), -grid[0]))
