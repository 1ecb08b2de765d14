"""Boxes in answers: reading them, and intersection over union (RefCOCO counts IoU >= 0.5)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of width and height

GAP = 6  # the most letters between two numbers of a box, as in "),  ("
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w])")
_LOC = re.compile(r"<loc(\d{4})>\s*" * 4)  # PaliGemma: top, left, bottom, right
_BINS = 1024  # of its locations
_NAMES = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))

UNITS = ("auto", "pixels", "thousandths", "resized")


def read_box(answer: str, size: tuple[int, int], unit: str = "auto") -> Box | None:
    """The box of an answer as fractions of the image; None where there is none.

    It is PaliGemma's `<loc0123>` four times, four numbers named x1, y1, x2, y2 (or xmin ..., or left ...) in any
    order, or the first four numbers in a row.

    Args:
        size: width and height in pixels. unit: what numbers above 1 are: "pixels", "thousandths" (Qwen2-VL, Qwen3-VL,
            InternVL); "auto" = pixels, and so is "resized", of an image of this size. Numbers of which at most one is
            above 1 (LLaVA's are, by a hair), or all below 2 and not all whole, are fractions.
    """
    if found := _LOC.search(answer):
        top, left, bottom, right = (int(one) / _BINS for one in found.groups())
        return left, top, right, bottom
    numbers = _named(answer) or _in_a_row(answer)
    if numbers is None or not all(math.isfinite(one) for one in numbers):
        return None
    left, top, right, bottom = numbers
    whole = all(one.is_integer() for one in numbers)
    if sum(one > 1 for one in numbers) <= 1 or (max(numbers) < 2 and not whole):
        return left, top, right, bottom
    width, height = (1000, 1000) if unit == "thousandths" else size
    return left / width, top / height, right / width, bottom / height


def _named(answer: str) -> list[float] | None:
    """Four numbers by name, as in `{"x1": 10, "y1": 20, "x2": 30, "y2": 40}`."""
    for names in _NAMES:
        found = [re.search(rf"(?i)\b{name}\b[\"'\s]*[:=]\s*[\"']?({_NUMBER.pattern})", answer) for name in names]
        if all(found):
            return [float(one[1]) for one in found if one is not None]
    return None


def _in_a_row(answer: str) -> list[float] | None:
    """The first four numbers that stand side by side."""
    numbers = list(_NUMBER.finditer(answer))
    for first in range(len(numbers) - 3):
        four = numbers[first : first + 4]
        if all(b.start() - a.end() <= GAP for a, b in itertools.pairwise(four)):
            return [float(number.group()) for number in four]
    return None


def resized(size: tuple[int, int], factor: int, least: int, most: int) -> tuple[int, int]:
    """The size that Qwen2.5-VL's processor gives an image, in whose pixels the model's boxes are.

    Args:
        size: width and height. factor: what both become a multiple of. least, most: pixels of the result.
    """
    width, height = (max(factor, round(side / factor) * factor) for side in size)
    if width * height > most:
        shrink = math.sqrt(size[0] * size[1] / most)
        width, height = (max(factor, math.floor(side / shrink / factor) * factor) for side in size)
    elif width * height < least:
        grow = math.sqrt(least / (size[0] * size[1]))
        width, height = (math.ceil(side * grow / factor) * factor for side in size)
    return width, height


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    if width <= 0 or height <= 0 or not all(areas):
        return 0.0
    return width * height / (sum(areas) - width * height)
