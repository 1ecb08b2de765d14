"""Overlays of visual tokens on their image: dropped tokens, heat maps, frames. Pillow only.

Shapes: V visual tokens of the image.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...accounting.report import painted
from ...accounting.sheet import Sheet, on_a_sheet, when
from ...flow.frames import frame_of
from ...flow.locate import ImageSpan
from ...flow.select import evenly
from ...inputs.images import as_rgb

SIDE = 420  # pixels of the longer side; the bundled pair's images have 112
CELL = 140  # of a frame among others
DARK = (16, 18, 26)
FRAME = (255, 255, 255)
# From cold to hot; readable on bright and dark images, and by readers with red-green colour blindness.
RAMP = ((40, 30, 110), (120, 40, 140), (210, 70, 100), (250, 150, 60), (255, 235, 130))


def scaled(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The image, resized so that its longer side has `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return as_rgb(image).resize(size, Image.Resampling.LANCZOS)


def overlay(
    image: Image.Image,
    *,
    kept: ImageSpan | None = None,
    heat: tuple[ImageSpan, Tensor] | None = None,
    framed: tuple[ImageSpan, Tensor] | None = None,
    hottest: float | None = None,
    side: int = SIDE,
) -> Image.Image:
    """The image with dropped tokens darkened and a heat map on top.

    Args:
        kept: the span whose `kept` stay bright; None: everything does. heat: values [V] and the span they lie on;
            the two grids may differ. framed: which tokens get a frame, bool [V], and their span. hottest: the value
            with the hottest colour; None: the highest one.
    """
    canvas = scaled(image, side)
    if heat is not None:
        span, values = heat
        # Square root: one token often gets ten times the attention of the others, which would all look the same.
        most = max(1e-30, float(values.amax()) if hottest is None else hottest)
        fractions = (values / most).clamp(0, 1).sqrt().tolist()
        colours = painted(canvas.copy(), span, map(colour, fractions))
        strength = painted(Image.new("L", canvas.size), span, [round(60 + 150 * fraction) for fraction in fractions])
        canvas = Image.composite(colours, canvas, strength)
    if kept is not None and kept.kept is not None and not bool(kept.xy.isnan().all()):  # else nothing could be drawn
        stays = torch.isin(kept.positions, kept.kept)
        mask = painted(Image.new("L", canvas.size, 200), kept, [0 if stay else None for stay in stays.tolist()])
        canvas = Image.composite(Image.new("RGB", canvas.size, DARK), canvas, mask)
    if framed is not None:
        span, frames = framed
        canvas = painted(canvas, span, [FRAME if wanted else None for wanted in frames.tolist()], frame=3)
    return canvas


def in_sheets(
    frames: Sequence[Image.Image], *, kept: ImageSpan | None = None, heat: tuple[ImageSpan, Tensor] | None = None
) -> Image.Image:
    """Evenly spaced frames of a clip side by side, each with its part of an overlay.

    Args:
        kept, heat: as in `overlay`; the hottest token of all frames has the hottest colour.
    """
    span = kept or (heat[0] if heat is not None else None)
    t = len(frames) if span is None else span.grid[0]
    shown, given = on_a_sheet(t), evenly(t, len(frames)).tolist()
    hottest = None if heat is None else float(heat[1].amax())
    parts = []
    for at in shown:
        warmth = None
        if heat is not None:
            there = at * heat[0].grid[0] // t  # a small model may see fewer frames
            mine = torch.eq(heat[0].frame, there) if heat[0].frame is not None else torch.ones(heat[0].count).bool()
            warmth = frame_of(heat[0], there), heat[1][mine]
        part = None if kept is None else frame_of(kept, at)
        parts.append(overlay(frames[given[at]], kept=part, heat=warmth, hottest=hottest, side=CELL))
    times = [when(at, None if span is None else span.seconds) for at in shown]
    return Sheet(len(parts), max(one.width for one in parts), max(one.height for one in parts)).drawn(parts, times)


def colour(fraction: float) -> tuple[int, int, int]:
    """A colour of the ramp, 0 = coldest."""
    at = min(max(fraction, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    r, g, b = (round(a + (c - a) * (at - low)) for a, c in zip(RAMP[low], RAMP[low + 1], strict=True))
    return r, g, b
