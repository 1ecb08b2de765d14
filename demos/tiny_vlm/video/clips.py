"""Clips: two to four things on a scene's background, each with one event of its own. Deterministic from a seed.

Things differ in shape and in colour, so that both name them. Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from PIL import Image

from ..scenes import Scene, Thing, check_split, make_scene, render
from ..vocabulary import CANVAS, COLOURS, SHAPES, SIZES

FRAMES = 8
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOST_BLINKS = 3
_TRIES = 60


@dataclass(frozen=True)
class Event:
    """What happens to one thing: it `stays` as it is, `moves` a `way`, `appears` or changes `colour` at a frame, or is
    away in the frames `away`, none beside another, so that it blinks as often."""

    kind: str
    way: str = ""
    frame: int = 0
    colour: str = ""
    away: tuple[int, ...] = ()


@dataclass(frozen=True)
class Actor:
    """A thing as it is at first, its event, and its centre in every frame."""

    thing: Thing
    event: Event
    path: tuple[tuple[int, int], ...]

    def at(self, frame: int) -> Thing | None:
        """The thing in a frame, None where it is not to be seen."""
        event = self.event
        if (event.kind == "appears" and frame < event.frame) or frame in event.away:
            return None
        x, y = self.path[frame]
        thing = replace(self.thing, cx=x + self.thing.width / 2, cy=y + self.thing.height / 2)
        if event.kind == "changes" and frame >= event.frame:
            return replace(thing, colour=event.colour, rgb=COLOURS[event.colour])
        return thing


@dataclass(frozen=True)
class ClipScene:
    """A clip's full truth: what lies behind, and who acts on it."""

    ground: Scene
    actors: tuple[Actor, ...]

    @property
    def seed(self) -> int:
        """Of the clip."""
        return self.ground.seed

    def pixels(self) -> np.ndarray:
        """All frames, uint8 [T, H, W, 3]."""
        return np.stack([self._frame(frame) for frame in range(FRAMES)])

    def _frame(self, frame: int) -> np.ndarray:
        there = (actor.at(frame) for actor in self.actors)
        return render(replace(self.ground, things=tuple(thing for thing in there if thing is not None)))

    def frames(self) -> list[Image.Image]:
        """All frames as images."""
        return [Image.fromarray(frame) for frame in self.pixels()]


def make_clip(seed: int, split: str = "train") -> ClipScene:
    """Draw a clip's truth from its seed."""
    check_split(split)
    rng = random.Random(f"clips {split} {seed}")
    ground = replace(make_scene(seed, split), things=())
    shapes, colours = rng.sample([s for s in SHAPES if s != "tile"], 4), rng.sample(list(COLOURS), 8)
    actors: list[Actor] = []
    for number in range(rng.randint(2, 4)):
        for _ in range(_TRIES):
            actor = _actor(rng, shapes[number], colours[number], colours[4 + number])
            if actor is not None and all(_apart(actor, other) for other in actors):
                actors.append(actor)
                break
    background = _background(ground, rng, actors)
    return ClipScene(replace(ground, background=background), tuple(actors))


def _background(ground: Scene, rng: random.Random, actors: list[Actor]) -> tuple[int, int, int]:
    """A colour far from every one that is shown."""
    used = [COLOURS[c] for a in actors for c in (a.thing.colour, a.event.colour) if c]
    best = max(
        (tuple(rng.randint(20, 250) for _ in range(3)) for _ in range(40)),
        key=lambda rgb: min(sum((a - b) ** 2 for a, b in zip(rgb, one, strict=True)) for one in used),
    )
    return best[0], best[1], best[2]


def _actor(rng: random.Random, shape: str, colour: str, other: str) -> Actor | None:
    size = rng.choice(("small", "medium", "medium"))
    side = rng.randint(*SIZES[size])
    kind = rng.choice(("stays", "moves", "moves", "appears", "appears", "changes", "blinks"))
    thing = Thing(shape, colour, size, 0, 0, side, side, None, COLOURS[colour], 0)
    x, y = rng.randint(0, CANVAS - side), rng.randint(0, CANVAS - side)
    path = [(x, y)] * FRAMES
    if kind == "moves":
        way = rng.choice(list(WAYS))
        step = rng.randint(5, 9)
        path = [(x + WAYS[way][0] * step * i, y + WAYS[way][1] * step * i) for i in range(FRAMES)]
        if not all(0 <= at <= CANVAS - side for at in path[-1]):
            return None
        return Actor(thing, Event(kind, way=way), tuple(path))
    if kind == "appears":
        return Actor(thing, Event(kind, frame=rng.randint(1, FRAMES - 2)), tuple(path))
    if kind == "changes":
        return Actor(thing, Event(kind, frame=rng.randint(2, FRAMES - 2), colour=other), tuple(path))
    if kind == "blinks":
        times = rng.randint(1, MOST_BLINKS)
        away = rng.choice([c for c in _apart_frames() if len(c) == times])
        return Actor(thing, Event(kind, away=away), tuple(path))
    return Actor(thing, Event(kind), tuple(path))


def _apart_frames() -> list[tuple[int, ...]]:
    """Sets of frames, neither first nor last, no two beside each other."""
    found: list[tuple[int, ...]] = []
    for bits in range(1, 1 << (FRAMES - 2)):
        frames = tuple(i + 1 for i in range(FRAMES - 2) if bits >> i & 1)
        if all(b - a > 1 for a, b in pairwise(frames)):
            found.append(frames)
    return found


def _apart(one: Actor, other: Actor) -> bool:
    """Whether the two are at least 2 px off each other in every frame, seen or not."""
    for (ax, ay), (bx, by) in zip(one.path, other.path, strict=True):
        a, b = one.thing.width + 2, other.thing.width + 2
        if ax < bx + b and bx < ax + a and ay < by + b and by < ay + a:
            return False
    return True
