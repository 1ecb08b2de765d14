"""Boxes in answers: reading them, and intersection over union (RefCOCO counts IoU >= 0.5)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of width and height

GAP = 6  # the most letters between two numbers of a box, as in "),  ("
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?![\w])")

UNITS = ("auto", "pixels", "thousandths")


def read_box(answer: str, size: tuple[int, int], unit: str = "auto") -> Box | None:
    """The first four numbers in a row of an answer, as fractions of the image; None where there are none.

    Args:
        size: width and height in pixels. unit: what numbers above 1 are: "pixels" (Qwen2.5-VL), "thousandths"
            (Qwen2-VL, Qwen3-VL, InternVL); "auto" = pixels. Numbers up to 1 are fractions of the image (LLaVA).
    """
    numbers = list(_NUMBER.finditer(answer))
    for first in range(len(numbers) - 3):
        four = numbers[first : first + 4]
        if all(b.start() - a.end() <= GAP for a, b in itertools.pairwise(four)):
            break
    else:
        return None
    left, top, right, bottom = (float(number.group()) for number in four)
    if max(left, top, right, bottom) <= 1.0:
        return left, top, right, bottom
    width, height = (1000, 1000) if unit == "thousandths" else size
    return left / width, top / height, right / width, bottom / height


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom); 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    if width <= 0 or height <= 0 or not all(areas):
        return 0.0
    return width * height / (sum(areas) - width * height)
