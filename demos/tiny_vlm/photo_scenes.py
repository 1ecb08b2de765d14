"""The harder world: things on real photographs, one over the other at times, among strokes and specks.

The questions are those of `questions`: a scene here is a `Scene` with another background. Things are stickers with a
thin light or dark rim, so that a gray thing on a gray wall has an edge; at least `VISIBLE` of each shows, of a tile
all of it. Strokes and specks lie behind the things, in the same colours, and no question is about them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .photos import Photograph, of_split, pixels_of
from .scenes import Scene, Thing, apart, check_split, coverage, draw_things, write_digit
from .vocabulary import CANVAS, COLOURS, PATCH

VISIBLE = 0.7
OVERLAPPING = 0.6  # of the scenes may have things over each other


@dataclass(frozen=True)
class Mark:
    """A stroke through points, or a speck where there is one point only."""

    points: tuple[tuple[int, int], ...]
    width: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class PhotoScene(Scene):
    """`crop`: (left, top, side) as fractions of the photograph's room; `light`: what each channel is multiplied by."""

    photograph: Photograph
    crop: tuple[float, float, float]
    mirrored: bool
    light: tuple[float, float, float]
    marks: tuple[Mark, ...]

    def image(self) -> Image.Image:
        return Image.fromarray(render_photo(self))


def make_photo_scene(
    seed: int, split: str = "train", *, max_things: int = 8, digits: float = 1.0, canvas: int = CANVAS
) -> PhotoScene:
    """Draw a scene's truth from its seed: 1 to `max_things` things on a square of `canvas` pixels, a multiple of 8."""
    check_split(split)
    rng = random.Random(f"photographs {split} {seed}")
    side = canvas // PATCH
    photograph = rng.choice(of_split(split))
    crop = (rng.random(), rng.random(), rng.uniform(0.3, 1.0))
    mirrored, gain = rng.random() < 0.5, rng.uniform(0.7, 1.2)
    red, green, blue = (gain * rng.uniform(0.88, 1.12) for _ in range(3))
    marks = tuple(_mark(rng, canvas) for _ in range(rng.randint(0, 5)))
    room = _Room(canvas, rng.random() < OVERLAPPING)
    count = rng.randint(1, max(1, min(max_things, side * side // 14)))
    for thing in draw_things(rng, (0, 0, canvas, canvas), count, digits, canvas, room.free):
        room.put(thing)
    window = (0, 0, side, side)
    light = (red, green, blue)
    return PhotoScene(seed, split, window, "photograph", (0, 0, 0), tuple(room.things), photograph, crop, mirrored,
                      light, marks)  # fmt: skip


def _mark(rng: random.Random, canvas: int) -> Mark:
    r, g, b = (min(255, max(0, c + rng.randint(-30, 30))) for c in COLOURS[rng.choice(list(COLOURS))])
    x, y = rng.randrange(canvas), rng.randrange(canvas)
    if rng.random() < 0.5:
        return Mark(((x, y),), rng.randint(2, 4), (r, g, b))
    ends = [(x + rng.randint(-28, 28), y + rng.randint(-28, 28)) for _ in range(rng.randint(1, 3))]
    return Mark(((x, y), *ends), rng.randint(1, 2), (r, g, b))


class _Room:
    """What is still seen of each thing, as they are laid over each other."""

    def __init__(self, canvas: int, overlapping: bool) -> None:
        self.things: list[Thing] = []
        self.overlapping = overlapping
        self.owner = np.full((canvas, canvas), -1, dtype=np.int8)
        self.areas: list[int] = []

    def free(self, x: int, y: int, w: int, h: int) -> bool:
        """Whether a thing that fills this box would leave enough of all others."""
        if apart(self.things, x, y, w, h):
            return True
        if not self.overlapping:
            return False
        covered = np.bincount(self.owner[y : y + h, x : x + w].ravel() + 1, minlength=len(self.things) + 1)[1:]
        seen = np.bincount(self.owner.ravel() + 1, minlength=len(self.things) + 1)[1:]
        for thing, area, now, lost in zip(self.things, self.areas, seen, covered, strict=True):
            least = area if thing.shape == "tile" else VISIBLE * area
            if now - lost < least:
                return False
        return True

    def put(self, thing: Thing) -> None:
        """Lay a thing over those before."""
        x0, y0, x1, y1 = thing.box
        shown = coverage(thing.shape, thing.width, thing.height, thing.angle) > 0.5
        self.owner[y0:y1, x0:x1][shown] = len(self.things)
        self.areas.append(int(shown.sum()))
        self.things.append(thing)


@lru_cache(maxsize=8192)
def _rim(shape: str, w: int, h: int, angle: int) -> np.ndarray:
    """The shape's coverage grown by a pixel on each side, (h + 2, w + 2)."""
    mask = np.pad(coverage(shape, w, h, angle), 2)
    rows = np.maximum(np.maximum(mask[:-2], mask[1:-1]), mask[2:])
    return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _ground(scene: PhotoScene, side: int) -> np.ndarray:
    photo = pixels_of(scene.photograph)
    high, wide = photo.shape[:2]
    cut = scene.crop[2] * min(high, wide)
    left, top = scene.crop[0] * (wide - cut), scene.crop[1] * (high - cut)
    box = (left, top, left + cut, top + cut)
    part = Image.fromarray(photo).resize((side, side), Image.Resampling.BILINEAR, box=box)
    ground = np.asarray(part, dtype=np.float32)[:, :: -1 if scene.mirrored else 1]
    image = Image.fromarray(np.clip(ground * np.array(scene.light, dtype=np.float32), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for mark in scene.marks:
        if len(mark.points) > 1:
            draw.line(mark.points, mark.rgb, mark.width, joint="curve")
        else:
            (x, y), r = mark.points[0], mark.width / 2
            draw.ellipse((x - r, y - r, x + r, y + r), mark.rgb)
    return np.asarray(image, dtype=np.float32)


def render_photo(scene: PhotoScene) -> np.ndarray:
    """The scene's pixels, uint8 (canvas, canvas, 3)."""
    side = scene.window[2] * PATCH
    canvas = np.pad(_ground(scene, side), ((1, 1), (1, 1), (0, 0)))  # room for rims at the border
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        look = (thing.shape, thing.width, thing.height, thing.angle)
        light = 0.3 * thing.rgb[0] + 0.59 * thing.rgb[1] + 0.11 * thing.rgb[2]
        around = canvas[y0 : y1 + 2, x0 : x1 + 2]
        around += 0.85 * _rim(*look)[..., None] * ((242 if light < 120 else 14) - around)
        area = canvas[y0 + 1 : y1 + 1, x0 + 1 : x1 + 1]
        shade = np.linspace(14, -14, thing.height, dtype=np.float32)[:, None, None]  # lit from above
        area += coverage(*look)[..., None] * (np.array(thing.rgb, dtype=np.float32) + shade - area)
        write_digit(area, thing)
    return np.clip(canvas[1:-1, 1:-1], 0, 255).astype(np.uint8)
