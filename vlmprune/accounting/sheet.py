"""Frames of a clip on one picture, a line of text below each: reports and galleries show clips so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ..flow.frames import frame_of
from ..flow.locate import ImageSpan
from ..flow.select import evenly

SHEET, CELL, LABEL = 16, 256, 14  # frames at most, pixels of a frame's longer side and of its line
BARS = 48  # pixels of the bars over time
GROUND, INK = (18, 18, 24), (230, 230, 230)


def on_a_sheet(count: int) -> list[int]:
    """Which of so many frames are shown, evenly spaced."""
    return evenly(min(SHEET, count), count).tolist()


@dataclass(frozen=True)
class Sheet:
    """`count` frames of `width` x `height` pixels at most, in rows of about as many as there are rows."""

    count: int
    width: int
    height: int

    @property
    def columns(self) -> int:
        return math.ceil(math.sqrt(self.count))

    @property
    def size(self) -> tuple[int, int]:
        return self.columns * self.width, math.ceil(self.count / self.columns) * (self.height + LABEL)

    def corner(self, at: int) -> tuple[int, int]:
        """Left and top of a frame."""
        return at % self.columns * self.width, at // self.columns * (self.height + LABEL)

    def drawn(self, frames: Iterable[Image.Image], labels: Iterable[str]) -> Image.Image:
        """The frames, each with its line below."""
        sheet = Image.new("RGB", self.size, GROUND)
        pen = ImageDraw.Draw(sheet)
        for at, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            left, top = self.corner(at)
            sheet.paste(frame, (left, top))
            pen.text((left + 2, top + self.height), label, fill=INK)
        return sheet


def small(frames: Sequence[Image.Image], side: int = CELL) -> tuple[Sheet, list[Image.Image]]:
    """The frames scaled down, tiny ones up until a line fits below, and the sheet that they fit on."""
    scaled = [one.copy() for one in frames]
    for i, one in enumerate(scaled):
        one.thumbnail((side, side))
        if max(one.size) < side // 2:
            scale = side / 2 / max(one.size)
            scaled[i] = one.resize((round(one.width * scale) or 1, round(one.height * scale) or 1))
    return Sheet(len(scaled), max(one.width for one in scaled), max(one.height for one in scaled)), scaled


def when(at: int, seconds: Sequence[float] | None) -> str:
    """When a frame is shown, or its number where that is not known."""
    return f"frame {at}" if seconds is None else f"{seconds[at]:.1f} s"


def bars_over_time(pen: Any, span: ImageSpan, box: tuple[int, int, int, int]) -> None:
    """A bar per frame in a box (left, top, right, bottom), on a grey one that stands for all its tokens."""
    left, top, right, bottom = box
    step = (right - left) / span.grid[0]
    for at, kept in enumerate(span.frames_kept):
        fraction = kept / max(1, frame_of(span, at).count)
        first, last = left + at * step, max(left + at * step, left + (at + 1) * step - 2)
        pen.rectangle((first, top, last, bottom), fill=(52, 56, 70))
        if fraction:
            pen.rectangle((first, bottom - fraction * (bottom - top), last, bottom), fill=(45, 190, 170))
