"""Scenes: what is where, drawn to pixels, with the exact truth kept beside it. Deterministic from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw

from .vocabulary import CANVAS, COLOURS, GLYPHS, PATCH, POSITIONS, SHAPES, SIZES, TEXTURES

# Seeds of a split never meet those of another: a seed is offset by its split's base.
SPLITS = {"train": 0, "validation": 1 << 40, "test": 1 << 41}


Area = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Thing:
    """One object. Pixel coordinates are those of the full canvas, also for a scene drawn in a window of it."""

    shape: str
    colour: str
    size: str
    cx: float
    cy: float
    width: int
    height: int
    digit: int | None
    rgb: tuple[int, int, int]
    angle: int
    canvas: int = CANVAS

    @property
    def box(self) -> tuple[int, int, int, int]:
        x, y = round(self.cx - self.width / 2), round(self.cy - self.height / 2)
        return x, y, x + self.width, y + self.height

    @property
    def position(self) -> str:
        row, column = self.cell
        return POSITIONS[row][column]

    @property
    def cell(self) -> tuple[int, int]:
        return min(2, int(self.cy * 3 / self.canvas)), min(2, int(self.cx * 3 / self.canvas))


@dataclass(frozen=True)
class Scene:
    """An image's full truth. ``window`` = (first row, first column, rows, columns) in patches of the canvas."""

    seed: int
    split: str
    window: tuple[int, int, int, int]
    texture: str
    background: tuple[int, int, int]
    things: tuple[Thing, ...]

    def image(self) -> Image.Image:
        return Image.fromarray(render(self))

    @property
    def raster(self) -> list[Thing]:
        """Things in reading order: by row and column of the 3 x 3 position grid, then by centre."""
        return sorted(self.things, key=lambda t: (*t.cell, t.cy, t.cx))


def _background(rng: random.Random, used: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    for _ in range(60):
        low, high = (165, 250) if rng.random() < 0.6 else (20, 235)
        rgb = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
        if all(math.dist(rgb, one) >= 85 for one in used):
            return rgb
    return max(((235, 235, 235), (200, 190, 240), (250, 170, 210)), key=lambda c: min(math.dist(c, u) for u in used))


def _place(
    rng: random.Random, area: Area, w: int, h: int, canvas: int, free: Callable[[int, int, int, int], bool]
) -> tuple[int, int] | None:
    """A top-left corner whose box is free, with a centre at least 3 px off the borders of the 3 x 3 grid."""
    left, top, right, bottom = area
    if right - left < w or bottom - top < h:
        return None
    for _ in range(25):
        x, y = rng.randint(int(left), int(right) - w), rng.randint(int(top), int(bottom) - h)
        cx, cy = x + w / 2, y + h / 2
        if any(abs(c - k * canvas / 3) < 3 for c in (cx, cy) for k in (1, 2)):
            continue
        if free(x, y, w, h):
            return x, y
    return None


def apart(taken: list[Thing], x: int, y: int, w: int, h: int) -> bool:
    """Whether a box is at least 2 px off all others."""
    boxes = (thing.box for thing in taken)
    return all(x >= b[2] + 2 or y >= b[3] + 2 or x + w + 2 <= b[0] or y + h + 2 <= b[1] for b in boxes)


def _attributes(rng: random.Random, count: int, digits: float) -> list[tuple[str, str]]:
    """(shape, colour) of each thing. Repeats are forced in part of the scenes so that counts above 1 are common."""
    colours = list(COLOURS)
    shapes = [s for s in SHAPES if s != "tile"]
    tiles = digits * 0.25
    pairs = [("tile" if rng.random() < tiles else rng.choice(shapes), rng.choice(colours)) for _ in range(count)]
    mode = rng.random()
    shape = rng.choice(shapes) if mode < 0.22 or 0.36 <= mode < 0.44 else None
    colour = rng.choice(colours) if 0.22 <= mode < 0.44 else None
    fewest, most = min(2, count), count
    if 0.44 <= mode < 0.44 + 0.26 * digits:
        shape, fewest, most = "tile", 1, min(4, count)
    if shape or colour:
        k = rng.randint(fewest, most)
        pairs[:k] = [(shape or s, colour or c) for s, c in pairs[:k]]
    rng.shuffle(pairs)
    return pairs


def make_scene(
    seed: int,
    split: str = "train",
    *,
    window: tuple[int, int, int, int] | None = None,
    max_things: int = 8,
    digits: float = 1.0,
    canvas: int = CANVAS,
) -> Scene:
    """Draw a scene's truth from its seed: 1 to ``max_things`` things inside ``window`` (patch units).

    Args:
        window: the whole canvas if None.
        digits: scales how often tiles with a digit appear.
        canvas: the side in pixels, a multiple of the patch.
    """
    check_split(split)
    rng = random.Random(SPLITS[split] + seed)
    window = window or (0, 0, canvas // PATCH, canvas // PATCH)
    row, col, rows, cols = window
    count = rng.randint(1, max(1, min(max_things, rows * cols // 14)))
    left, top = col * PATCH, row * PATCH
    right, bottom = left + cols * PATCH, top + rows * PATCH
    if rng.random() < 0.2 and rows >= 10 and cols >= 10:
        # Everything in one half: the rest of the image is empty.
        side = rng.randrange(4)
        middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
        left, right = (left, middle_x) if side == 0 else (middle_x, right) if side == 1 else (left, right)
        top, bottom = (top, middle_y) if side == 2 else (middle_y, bottom) if side == 3 else (top, bottom)
    things: list[Thing] = []
    for thing in draw_things(rng, (left, top, right, bottom), count, digits, canvas, partial(apart, things)):
        things.append(thing)
    background = _background(rng, [COLOURS[t.colour] for t in things] or [(0, 0, 0)])
    return Scene(seed, split, window, rng.choice(TEXTURES), background, tuple(things))


def check_split(split: str) -> None:
    """Raise where there is no such split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")


def draw_things(
    rng: random.Random,
    area: Area,
    count: int,
    digits: float,
    canvas: int,
    free: Callable[[int, int, int, int], bool],
) -> Iterator[Thing]:
    """Up to `count` things in the area of a canvas, one by one; the first one always.

    `free` says of a box (left, top, width, height) whether the next thing may have it, given those before.
    """
    bias = rng.choice([None, None, None, *SIZES])
    drawn = 0
    for shape, colour in _attributes(rng, count, digits):
        wanted = bias or rng.choice(list(SIZES))
        ladder = ["large", "medium", "small"]
        for size in ladder[ladder.index(wanted) :]:
            if shape == "tile" and size == "small":
                if drawn:
                    continue
                shape = "circle"  # no room for a tile, and a scene is never empty
            low, high = (27, 29) if shape == "tile" and size == "medium" else SIZES[size]
            w = h = rng.randint(low, high)
            if shape == "rectangle" and rng.random() < 0.75:
                short = rng.uniform(0.5, 0.85)
                w, h = (w, max(7, round(h * short))) if rng.random() < 0.5 else (max(7, round(w * short)), h)
            spot = _place(rng, area, w, h, canvas, free)
            if spot is not None:
                x, y = spot
                digit = rng.randrange(10) if shape == "tile" else None
                angle = rng.choice((0, 0, -14, -7, 7, 14)) if shape in ("star", "triangle", "cross") else 0
                r, g, b = (min(255, max(0, c + rng.randint(-16, 16))) for c in COLOURS[colour])
                drawn += 1
                yield Thing(shape, colour, size, x + w / 2, y + h / 2, w, h, digit, (r, g, b), angle, canvas)
                break


def _polygon(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square."""
    if shape == "triangle":
        return [(0.5, 0.02), (0.99, 0.95), (0.01, 0.95)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5)]
    if shape == "cross":
        a, b = 0.33, 0.67
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    corners = []
    for i in range(10):
        radius, turn = (0.52 if i % 2 == 0 else 0.22), math.pi * (i / 5 - 0.5)
        corners.append((0.5 + radius * math.cos(turn), 0.52 + radius * math.sin(turn)))
    return corners


@lru_cache(maxsize=8192)
def coverage(shape: str, w: int, h: int, angle: int) -> np.ndarray:
    """Coverage (h, w) in 0..1, drawn at four times the size."""
    scale = 4
    big = Image.new("L", (w * scale, h * scale), 0)
    draw = ImageDraw.Draw(big)
    end = (w * scale - 1, h * scale - 1)
    if shape in ("circle", "ring"):
        draw.ellipse(((0, 0), end), fill=255)
        if shape == "ring":
            inset = max(3 * scale, round(0.2 * w * scale))
            draw.ellipse(((inset, inset), (end[0] - inset, end[1] - inset)), fill=0)
    elif shape == "rectangle":
        draw.rectangle(((0, 0), end), fill=255)
    elif shape == "tile":
        draw.rounded_rectangle(((0, 0), end), radius=round(0.16 * w * scale), fill=255)
    else:
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        centred = [(x - 0.5, y - 0.5) for x, y in _polygon(shape)]
        turned = [(0.5 + c * x - s * y, 0.5 + s * x + c * y) for x, y in centred]
        draw.polygon([(x * w * scale, y * h * scale) for x, y in turned], fill=255)
    return np.asarray(big.resize((w, h), Image.Resampling.BOX), dtype=np.float32) / 255


@lru_cache(maxsize=1024)
def glyph(digit: int, w: int, h: int) -> np.ndarray:
    """A digit's coverage (h, w), centred in its tile; 20-28 px high."""
    high = min(28, h - 7)
    wide = round(high * 5 / 7)
    bits = np.array([[int(c) * 255 for c in line] for line in GLYPHS[digit]], dtype=np.uint8)
    drawn = Image.fromarray(bits).resize((wide * 4, high * 4), Image.Resampling.NEAREST)
    drawn = drawn.resize((wide, high), Image.Resampling.BOX)
    out = np.zeros((h, w), dtype=np.float32)
    y, x = (h - high) // 2, (w - wide) // 2
    out[y : y + high, x : x + wide] = np.asarray(drawn, dtype=np.float32) / 255
    return out


def _canvas(scene: Scene) -> np.ndarray:
    """The background (height, width, 3) in float."""
    _, _, rows, cols = scene.window
    h, w = rows * PATCH, cols * PATCH
    rng = np.random.default_rng(SPLITS[scene.split] + scene.seed)
    canvas = np.empty((h, w, 3), dtype=np.float32)
    canvas[:] = scene.background
    if scene.texture == "noise":
        canvas += rng.standard_normal((h, w, 1), dtype=np.float32) * rng.uniform(6, 16)
    else:
        angle = rng.uniform(0, 2 * math.pi)
        ys, xs = np.mgrid[0:h, 0:w].astype(np.float32)
        along = np.cos(angle) * xs + np.sin(angle) * ys
        if scene.texture == "gradient":
            canvas += (along / CANVAS * rng.uniform(25, 60))[..., None] * np.where(rng.random(3) < 0.5, -1, 1)
        elif scene.texture == "stripes":
            canvas += (np.sin(along * (2 * math.pi / rng.uniform(7, 18))) * rng.uniform(8, 18))[..., None]
    return canvas


def render(scene: Scene) -> np.ndarray:
    """Pixels of the scene's window, uint8 (rows * 8, columns * 8, 3)."""
    canvas = _canvas(scene)
    row, col = scene.window[:2]
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        area = canvas[y0 - row * PATCH : y1 - row * PATCH, x0 - col * PATCH : x1 - col * PATCH]
        mask = coverage(thing.shape, thing.width, thing.height, thing.angle)[..., None]
        area += mask * (np.array(thing.rgb, dtype=np.float32) - area)
        write_digit(area, thing)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def write_digit(area: np.ndarray, thing: Thing) -> None:
    """A tile's digit onto its pixels (h, w, 3), light on dark or dark on light."""
    if thing.digit is not None:
        light = 0.3 * thing.rgb[0] + 0.59 * thing.rgb[1] + 0.11 * thing.rgb[2] < 120
        ink = np.float32(245 if light else 10)
        area += glyph(thing.digit, thing.width, thing.height)[..., None] * (ink - area)
