"""The image in the middle of Ask, whose patches the page's script drops as the keep slider moves.

Of a clip it is one frame, which a second slider chooses, above a bar for every frame. Shapes: V visual tokens of the
image, T frames that the model sees.
"""

import base64
import io
import json
import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...flow.locate import ImageSpan
from ...flow.select import evenly
from ...flow.transfer import cell_sizes
from ...inputs.video import Clip
from .draw import scaled
from .page import html
from .result import AskResult
from .upload import FRAME_SIDE

LARGE = 640  # pixels of the longer side
DIGITS = 4  # of a corner, in fractions of the image


def plain(image: Image.Image | Clip) -> str:
    """An image or a clip nobody has asked about yet."""
    if isinstance(image, Clip):
        labels = [label(image.seconds, at) for at in range(len(image.frames))]
        data = {"frames": list(map(jpeg, image.frames)), "labels": labels, "said": "Press Ask."}
        first, alt = scaled(image.frames[0], FRAME_SIDE), "A frame of the clip to ask about."
        return str(html.live(first, alt, json.dumps(data), "", len(labels)))
    return str(html.live(scaled(image, LARGE), "The image to ask about.", "", ""))


def live(run: AskResult) -> str:
    """The image with what the method keeps at every budget, as far as one look at the prompt tells."""
    report = run.pruned.report
    kept, visual = report.kept_tokens[0], report.visual_tokens[0]
    asked = report.method.get("keep")
    if run.exited:
        said = f"The small model answered alone: none of the {visual:,} visual tokens reached the large one."
    else:
        said = f"{kept:,} of {visual:,} visual tokens stayed; the dropped ones are dark."
    drawn = dict(run.budgets)
    if run.span.kept is not None and not run.exited:
        drawn[float(asked or 1)] = run.span.stays  # what stayed in truth
    data: dict[str, Any] = {
        "cells": corners(run.span),
        "keeps": list(drawn),
        "masks": [packed(mask) for mask in drawn.values()],
        "asked": asked,
        "said": said,
        "every": bool(run.budgets),
    }
    if isinstance(run.image, Clip):
        data |= in_time(run.image, run.span)
        alt = f"A frame of the clip that is asked about. {said}"
        return str(html.live(scaled(run.image.frames[0], FRAME_SIDE), alt, json.dumps(data), said, run.span.grid[0]))
    return str(html.live(scaled(run.image, LARGE), f"The image that is asked about. {said}", json.dumps(data), said))


def in_time(clip: Clip, span: ImageSpan) -> dict[str, Any]:
    """What the script needs of a clip: a picture and a label of each of the T frames, and the frame of each token."""
    given = evenly(span.grid[0], len(clip.frames)).tolist()
    assert span.frame is not None
    return {
        "frames": [jpeg(clip.frames[at]) for at in given],
        "labels": [label(span.seconds, at) for at in range(span.grid[0])],
        "frame": span.frame.tolist(),
    }


def label(seconds: Any, at: int) -> str:
    """When a frame is shown."""
    return f"Frame {at + 1}" if seconds is None else f"Frame {at + 1}, {seconds[at]:.1f} s"


def jpeg(image: Image.Image) -> str:
    """A frame as a data URL; as PNG those of a clip would be ten times as large."""
    data = io.BytesIO()
    scaled(image, FRAME_SIDE).save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def corners(span: ImageSpan) -> list[list[float] | None]:
    """By token: left, top, right and bottom in fractions of the image; None for a token without a place."""
    centre, half = span.xy.double(), cell_sizes(span).double() / 2
    boxes = torch.cat([centre - half, centre + half], dim=1).tolist()
    return [None if any(map(math.isnan, box)) else [round(one, DIGITS) for one in box] for box in boxes]


def packed(mask: Tensor) -> str:
    """A bool [V] in hexadecimal, four tokens a digit, the first token first."""
    bits = "".join("1" if stays else "0" for stays in mask.tolist())
    bits += "0" * (-len(bits) % 4)
    return "".join(f"{int(bits[at : at + 4], 2):x}" for at in range(0, len(bits), 4))
