"""Images of visual tokens: what is left of them in a layer, and a heat map over them. Pillow only.

Shapes: V visual tokens of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...accounting.report import pixel_boxes
from ...inputs.images import as_rgb

if TYPE_CHECKING:
    from ...flow.locate import ImageSpan

SIDE = 420  # pixels of the longer side; the bundled pair's images have 112
DARK = (16, 18, 26)
FRAME = (255, 255, 255)
# From cold to hot; readable on bright and dark images, and without telling red from green.
RAMP = ((40, 30, 110), (120, 40, 140), (210, 70, 100), (250, 150, 60), (255, 235, 130))


def shown(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The image at the size of all drawings."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return as_rgb(image).resize(size, Image.Resampling.LANCZOS)


def overlay(
    image: Image.Image,
    *,
    kept: ImageSpan | None = None,
    heat: tuple[ImageSpan, Tensor] | None = None,
    framed: tuple[ImageSpan, Tensor] | None = None,
    side: int = SIDE,
) -> Image.Image:
    """The image with dropped tokens darkened and a heat map on top.

    Args:
        kept: the span whose `kept` stay bright; None: everything does. heat: values [V] and the span they lie on;
            the two grids may differ. framed: which tokens get a frame, bool [V], and their span.
    """
    canvas = shown(image, side)
    if heat is not None:
        span, values = heat
        highest = float(values.max()) if len(values) else 0.0
        # The root: one token often has ten times the attention of all others, which would all look alike.
        fractions = (values / highest).clamp(0, 1).sqrt().tolist() if highest > 0 else [0.0] * len(values)
        colours, strength = canvas.copy(), Image.new("L", canvas.size, 0)
        pens = ImageDraw.Draw(colours), ImageDraw.Draw(strength)
        for box, fraction in zip(pixel_boxes(span, canvas.size), fractions, strict=True):
            if box is not None:
                pens[0].rectangle(box, fill=colour(fraction))
                pens[1].rectangle(box, fill=round(60 + 150 * fraction))
        canvas = Image.composite(colours, canvas, strength)
    if kept is not None and kept.kept is not None:
        mask = Image.new("L", canvas.size, 200)
        pen = ImageDraw.Draw(mask)
        stays = torch.isin(kept.positions, kept.kept).tolist()
        for box, stay in zip(pixel_boxes(kept, canvas.size), stays, strict=True):
            if stay and box is not None:
                pen.rectangle(box, fill=0)
        canvas = Image.composite(Image.new("RGB", canvas.size, DARK), canvas, mask)
    if framed is not None:
        pen = ImageDraw.Draw(canvas)
        for box, wanted in zip(pixel_boxes(framed[0], canvas.size), framed[1].tolist(), strict=True):
            if wanted and box is not None:
                pen.rectangle(box, outline=FRAME, width=3)
    return canvas


def colour(fraction: float) -> tuple[int, int, int]:
    """A colour of the ramp, 0 = coldest."""
    at = min(max(fraction, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(at), len(RAMP) - 2)
    r, g, b = (round(a + (c - a) * (at - low)) for a, c in zip(RAMP[low], RAMP[low + 1], strict=True))
    return r, g, b
