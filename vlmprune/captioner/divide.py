"""Where to look: patches of an image that overlap and do not cut the objects assigned to them. Pure arithmetic.

Source: Patch Matters (arXiv 2504.06666), section "Divide". Boxes are ``(x0, y0, x1, y1)`` in pixels of the image, edges
not cells, so the width is ``x1 - x0``; they may be fractions.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..errors import VlmpruneError

Box = tuple[float, float, float, float]
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
ADJACENT = ((0, 1), (0, 2), (1, 3), (2, 3))  # quadrants that share a side, as indices into QUADRANTS


@dataclass(frozen=True)
class Detection:
    """A box around a detected object: `score` in 0..1, `label` its class or "" where the detector knows none."""

    box: Box
    score: float = 1.0
    label: str = ""


@dataclass(frozen=True)
class Patch:
    """A part of the image to describe: its name, its box, the object boxes that lie in it whole, its descriptions."""

    name: str
    box: Box
    objects: tuple[Box, ...] = ()
    samples: tuple[str, ...] = ()


def area(box: Box) -> float:
    """Square pixels; 0 for a box turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Square pixels that both cover."""
    return area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0 where both are empty."""
    both = intersection(a, b)
    either = area(a) + area(b) - both
    return both / either if either > 0 else 0.0


def hull(boxes: Iterable[Box]) -> Box:
    """The smallest box around all of them (at least one)."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def usable(detections: Iterable[Detection], size: tuple[int, int]) -> list[Detection]:
    """The detections cut to the image of `size` (width, height); boxes outside of it or without area are dropped.

    Raises:
        VlmpruneError: a box or score is not finite.
    """
    width, height = size
    kept = []
    for one in detections:
        if not all(math.isfinite(v) for v in (*one.box, one.score)):
            raise VlmpruneError(f"The detector gave {one!r}; every coordinate and score must be a finite number.")
        x0, y0, x1, y1 = one.box
        box = (min(max(x0, 0.0), width), min(max(y0, 0.0), height), min(max(x1, 0.0), width), min(max(y1, 0.0), height))
        if area(box) > 0:
            kept.append(Detection(box, one.score, one.label))
    return kept


def confident(detections: Sequence[Detection], *, threshold: float, fallback: int) -> list[Detection]:
    """Those with a score above `threshold`; if there are none, the `fallback` best."""
    passed = [one for one in detections if one.score > threshold]
    return passed or sorted(detections, key=lambda one: -one.score)[:fallback]


def merge(boxes: Sequence[Box], *, above: float) -> list[Box]:
    """Replace the most overlapping pair by its hull until no pair has an IoU greater than `above`.

    The most overlapping pair first: then the order of the boxes decides nothing but ties.
    """
    merged = list(boxes)
    while len(merged) > 1:
        i, j = max(combinations(range(len(merged)), 2), key=lambda pair: iou(merged[pair[0]], merged[pair[1]]))
        if iou(merged[i], merged[j]) <= above:
            break
        merged[i] = hull((merged[i], merged.pop(j)))
    return merged


def quadrants(size: tuple[int, int]) -> list[Box]:
    """The four exact quarters of an image of `size` (width, height), in the order of QUADRANTS."""
    width, height = map(float, size)
    x, y = width / 2, height / 2
    return [(0.0, 0.0, x, y), (x, 0.0, width, y), (0.0, y, x, height), (x, y, width, height)]


def spatial_patches(boxes: Sequence[Box], size: tuple[int, int], *, merge_above: float, fraction: float) -> list[Patch]:
    """The four patches of an image of `size` (width, height): each a quadrant and its objects' hull.

    Objects are the boxes, merged above an IoU of `merge_above`; without any, the whole image stands for the one object,
    as in the paper. An object joins the quadrants that hold more than `fraction` of its *own* area. One that no
    quadrant holds so much of (in the very centre) joins the quadrant that holds most of it, the first in reading order
    when several hold the same.
    """
    parts = quadrants(size)
    joined: list[list[Box]] = [[] for _ in parts]
    for box in merge(boxes or [hull(parts)], above=merge_above):
        held = [intersection(box, part) / area(box) for part in parts]
        # Rounding must not let one of four equal fractions win.
        most = next(i for i, part in enumerate(held) if part >= max(held) - 1e-9)
        for i in [i for i, part in enumerate(held) if part > fraction] or [most]:
            joined[i].append(box)
    return [
        Patch(name, hull((part, *objects)), tuple(objects))
        for name, part, objects in zip(QUADRANTS, parts, joined, strict=True)
    ]


def semantic_patch(matched: Sequence[Box], size: tuple[int, int], *, most_iou: float) -> Patch | None:
    """The hull of the boxes that a short caption mentions (the image if there are none), if it is small enough.

    Returns:
        None where its IoU with the whole image is greater than `most_iou`: it would say little new.
    """
    image = hull(quadrants(size))
    box = hull(matched or [image])
    return Patch("semantic", box, tuple(matched)) if iou(box, image) <= most_iou else None


def adjacent_pairs(patches: Sequence[Patch], *, above: float) -> list[tuple[int, int]]:
    """Indices of the patches side by side (never across the corner) whose IoU is greater than `above`."""
    return [(i, j) for i, j in ADJACENT if iou(patches[i].box, patches[j].box) > above]


def pixel_box(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels that a box touches, at least one each way."""
    # A rounding error of a millionth must not pull in another column of pixels.
    x0, y0 = (max(0, math.floor(v + 1e-6)) for v in box[:2])
    x1, y1 = (min(limit, math.ceil(v - 1e-6)) for v, limit in zip(box[2:], size, strict=True))
    x0, y0 = min(x0, size[0] - 1), min(y0, size[1] - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
