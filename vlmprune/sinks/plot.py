"""The plot of a sink report: heat map on the image, norm curve of the primary sink, sinks of every layer.

Drawn with Pillow alone, so that a plot of sinks needs no plotting library.
"""

import math

import torch
from PIL import Image, ImageDraw, ImageFont

from ..accounting.report import painted
from ..flow.frames import frame_of
from ..flow.sinks import FIRST_LAYER
from ..inputs.images import as_rgb
from .sample import SampleSinks

SIDE, PANEL, MARGIN = 360, 300, 44  # pixels
TOP, BOTTOM = 26, 26 + SIDE
INK, FAINT, PAPER = (28, 30, 38), (150, 154, 165), (255, 255, 255)
VISUAL, TEXT = (205, 60, 40), (60, 100, 190)
LOW, HIGH = (20, 24, 60), (255, 214, 90)  # the ends of the heat map's scale


def draw(
    one: SampleSinks, dims: tuple[int, ...], tau: float, image: Image.Image | None, number: int, layer: int | None
) -> Image.Image:
    """The three panels side by side, RGB; `image`, `number` and `layer` are those of `SinkReport.plot`, checked."""
    sheet = Image.new("RGB", (MARGIN * 4 + SIDE + 2 * PANEL, BOTTOM + MARGIN + 8), PAPER)
    pen = ImageDraw.Draw(sheet)
    first = min(FIRST_LAYER, one.layers - 1)
    shown = f"layer {layer}" if layer is not None else f"highest of layers {first}-{one.layers - 1}"
    sheet.paste(heat_map(one, tau, image, number, layer), (MARGIN, TOP))
    for x in range(SIDE):
        pen.line((MARGIN + x, BOTTOM + 8, MARGIN + x, BOTTOM + 20), fill=_colour(x / SIDE))
    for x, text in ((0, "0"), (SIDE // 2 - 20, f"tau {tau:.1f}"), (SIDE - 24, f"{2 * tau:.1f}")):
        pen.text((MARGIN + x, BOTTOM + 22), text, fill=FAINT)
    middle = 2 * MARGIN + SIDE
    right = middle + PANEL + MARGIN
    _norms(pen, one, middle)
    _counts(pen, one, right)
    for left, title in (
        (MARGIN, f"phi ({shown}), sink dimensions {', '.join(map(str, dims)) or 'none'}, tau {tau:.1f}"),
        (middle, f"norm of token {one.primary}, window {one.window.first}-{one.window.last}"),
        (right, "sinks per layer: image (red), text (blue)"),
    ):
        pen.text((left, 6), title, fill=INK, font=ImageFont.load_default())
    return sheet


def heat_map(one: SampleSinks, tau: float, image: Image.Image | None, number: int, layer: int | None) -> Image.Image:
    """phi of every token at its place in the image, sinks framed, over the darkened image: SIDE x SIDE."""
    span = one.images[number]
    layers = slice(min(FIRST_LAYER, one.layers - 1), None) if layer is None else slice(layer, layer + 1)
    places = one.visual[span.positions]
    values, sinks = one.phi[layers, places].amax(dim=0), one.sinks[layers, places].any(dim=0)
    if span.frame is not None:  # the frame of a video in which a token sticks out most
        at = span.frame[values.argmax()].clamp(min=0)
        mine = span.frame == at
        span, values, sinks = frame_of(span, int(at)), values[mine], sinks[mine]
    canvas = Image.new("RGB", (SIDE, SIDE), LOW)
    if image is not None:
        grey = as_rgb(image).convert("L").resize((SIDE, SIDE)).convert("RGB")
        canvas = Image.blend(grey, canvas, 0.35)
    # Finer grids come after the base grid and are drawn over it, as they show the same places in more detail.
    heat = painted(Image.new("RGB", (SIDE, SIDE), LOW), span, [_colour(value / tau / 2) for value in values.tolist()])
    heat = Image.blend(canvas, heat, 0.75) if image is not None else heat
    return painted(heat, span, [VISUAL if sink else None for sink in sinks.tolist()], frame=2)


def _colour(fraction: float) -> tuple[int, ...]:
    """From dark (0) to light (twice tau and above, where sinks are)."""
    fraction = min(1.0, max(0.0, fraction))
    return tuple(round(a + (b - a) * fraction) for a, b in zip(LOW, HIGH, strict=True))


def _norms(pen: ImageDraw.ImageDraw, one: SampleSinks, left: int) -> None:
    """On a logarithmic scale: a massive norm is a hundred times the others."""
    logs = torch.log10(one.norms.clamp(min=1e-6)).tolist()
    low, high = math.floor(min(logs)), math.ceil(max(logs) + 1e-9)
    step = PANEL / max(1, len(logs) - 1)

    def at(i: float, log: float) -> tuple[float, float]:
        return left + i * step, BOTTOM - (log - low) / max(1, high - low) * SIDE

    first, last = at(one.window.first, low), at(one.window.last, low)
    pen.rectangle((first[0], TOP, max(last[0], first[0] + 1), BOTTOM), fill=(244, 240, 226))
    for power in range(low, high + 1):
        _level(pen, left, at(0, power)[1], f"1e{power}")
    pen.line([at(i, log) for i, log in enumerate(logs)], fill=INK, width=2)
    _layer_axis(pen, left, step, len(logs))


def _counts(pen: ImageDraw.ImageDraw, one: SampleSinks, left: int) -> None:
    counts = [(len(a), len(b)) for a, b in zip(one.visual_sinks, one.text_sinks, strict=True)]
    highest = max(1, max(a + b for a, b in counts))
    step = PANEL / len(counts)
    _level(pen, left, BOTTOM, "0")
    _level(pen, left, TOP, str(highest))
    for i, (visual, text) in enumerate(counts):
        x, y = left + i * step + step * 0.15, float(BOTTOM)
        for number, colour in ((visual, VISUAL), (text, TEXT)):
            height = number / highest * SIDE
            if number:
                pen.rectangle((x, y - height, x + step * 0.7, y), fill=colour)
            y -= height
    _layer_axis(pen, left + step / 2, step, len(counts))


def _level(pen: ImageDraw.ImageDraw, left: int, y: float, text: str) -> None:
    pen.line((left, y, left + PANEL, y), fill=(225, 226, 230))
    pen.text((left - 34, y - 6), text, fill=FAINT)


def _layer_axis(pen: ImageDraw.ImageDraw, left: float, step: float, number: int) -> None:
    for i in range(0, number, math.ceil(number / 12)):
        pen.text((left + i * step - 4, BOTTOM + 6), str(i), fill=FAINT)
