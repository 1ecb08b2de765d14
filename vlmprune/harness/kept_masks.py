"""What the gallery shows of images and clips: a picture of each, and over it what a method dropped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..accounting.report import painted
from ..accounting.sheet import Sheet, on_a_sheet, small, when
from ..flow.frames import frame_of
from ..flow.locate import ImageSpan

SIDE = 480  # pixels of the longer side of an image
FRAME_SIDE = 128  # of each frame of a clip
MASK_SIDE = 240  # of an image's mask


def picture(shown: Any) -> dict[str, Any]:
    """An image scaled down, or a sheet of a clip's frames: a JPEG in base64 with its size."""
    if isinstance(shown, Image.Image):
        drawn = shown.convert("RGB")
        drawn.thumbnail((SIDE, SIDE))
    else:
        at, sheet, frames = _sheet(shown)
        drawn = sheet.drawn(frames, [when(one, shown.seconds) for one in at])
    data = io.BytesIO()
    drawn.save(data, "JPEG", quality=80)
    return {"width": drawn.width, "height": drawn.height, "data": base64.b64encode(data.getvalue()).decode()}


def masks(report: Any, media: Sequence[Any]) -> list[str | None]:
    """For each image and clip a PNG in base64 of what was dropped: black there, transparent where tokens were kept.

    None where it is not known which part a token shows.
    """
    return [_mask(span, shown) for span, shown in zip(report.images[0], media, strict=False)]


def _mask(span: ImageSpan, shown: Any) -> str | None:
    if bool(span.xy.isnan().all()):
        return None
    if isinstance(shown, Image.Image):
        scale = MASK_SIDE / max(shown.size)
        mask = _dropped((max(1, round(shown.width * scale)), max(1, round(shown.height * scale))), span)
    elif span.frame is None:
        return None
    else:
        at, sheet, frames = _sheet(shown)
        mask = Image.new("1", sheet.size, 1)
        # Some models merge neighbouring frames.
        merged = math.ceil(len(shown.frames) / span.grid[0])
        for place, (number, frame) in enumerate(zip(at, frames, strict=True)):
            part = frame_of(span, min(number // merged, span.grid[0] - 1))
            mask.paste(_dropped(frame.size, part), sheet.corner(place))
    data = io.BytesIO()
    mask.save(data, "PNG", transparency=1, optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def _dropped(size: tuple[int, int], span: ImageSpan) -> Image.Image:
    """1 where a token was kept, else 0."""
    return painted(Image.new("1", size), span, [1 if stay else None for stay in span.stays.tolist()])


def _sheet(clip: Any) -> tuple[list[int], Sheet, list[Image.Image]]:
    """Which frames of a clip are shown, and where."""
    at = on_a_sheet(len(clip.frames))
    return at, *small([clip.frames[one] for one in at], FRAME_SIDE)
