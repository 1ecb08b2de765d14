"""What the second pair is shown: scenes of both worlds on canvases of many sizes, captions and questions.

Everything follows from a step's number, so a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..language import FIRST_LESSONS, FIRST_MIX, LAST_LESSONS, LAST_MIX, MIX, PAIR_MIX, SECOND_LESSONS, questions_for
from ..photo_scenes import make_photo_scene
from ..questions import Question
from ..scenes import Scene, Thing, make_scene
from ..tower import pixels
from ..vocabulary import CANVAS
from .model import CONCEPTS, VALUES

STEP = 16  # every canvas is a multiple of it: both pairs' patches fill it
PHOTOGRAPHS = 0.55  # of the batches are scenes on photographs
WIDE = 0.05  # of the later batches are of canvases of 224 px, with fewer images
CROWDED = 0.5  # of the last batches hold many things of one shape or colour: counts of three to six are rare elsewhere
CROWDED_MIX = {**LAST_MIX, "count": 12.0}
FIRST_CAPTIONS = 0.3  # of the run over captions shows up to three things on small canvases
_AT = {concept: i for i, concept in enumerate(CONCEPTS)}


def draw(photographs: bool, seed: int, split: str = "train", **options: float) -> Scene:
    """A scene of one of the worlds."""
    return (make_photo_scene if photographs else make_scene)(seed, split, **options)  # type: ignore[arg-type]


def image_of(scene: Scene) -> np.ndarray:
    """Its pixels, uint8 (canvas, canvas, 3)."""
    return np.asarray(scene.image())


def things_differ(scene: Scene) -> bool:
    """Whether there are two things or more that share neither colour nor shape."""
    things = len(scene.things)
    return things >= 2 and things == len({t.shape for t in scene.things}) == len({t.colour for t in scene.things})


def crowded(scene: Scene) -> bool:
    """Whether there are three things or more of one shape or colour."""
    return any(max(Counter(getattr(t, name) for t in scene.things).values()) >= 3 for name in ("shape", "colour"))


def first_that(fits: Callable[[Scene], bool], photographs: bool, seed: int, canvas: int, most: int = 8) -> Scene:
    """The first scene from `seed` on, in steps that leave other scenes' seeds alone, that fits."""
    for attempt in range(400):
        scene = draw(photographs, seed + attempt * 10_000_000, canvas=canvas, max_things=most, digits=1.2)
        if fits(scene):
            break
    return scene


@dataclass
class Lesson:
    """Images (B, 3, canvas, canvas) and their scenes; questions where they are asked."""

    values: Tensor
    scenes: list[Scene]
    rows: list[list[Question]]


def captions_lesson(rng: random.Random, first: int, batch: int, progress: float) -> Lesson:
    """Scenes for the tower alone: first few things on small canvases, then up to eight."""
    photographs = rng.random() < PHOTOGRAPHS
    early = progress < FIRST_CAPTIONS
    canvas = rng.choice((64, 64, 80) if early else (80, 96, 112, 112, 128))
    most = rng.choice((1, 2, 3) if early else (2, 4, 8))
    scenes = [draw(photographs, first + i, canvas=canvas, max_things=most, digits=1.6) for i in range(batch)]
    return Lesson(pixels([image_of(s) for s in scenes]), scenes, [])


def questions_lesson(rng: random.Random, first: int, batch: int, progress: float) -> Lesson:
    """The lessons of `language.scenes_for`, on whole canvases of many sizes and in both worlds."""
    photographs = rng.random() < PHOTOGRAPHS
    canvas = rng.choice((64, 80, 96)) if progress < SECOND_LESSONS else rng.choice((80, 96, 112, 112, 112, 112, 128))
    if progress >= LAST_LESSONS and rng.random() < WIDE:
        canvas, batch = 2 * CANVAS, max(1, batch // 4)
    seeds = range(first, first + batch)
    chance = rng.random()
    mix = MIX
    if progress < FIRST_LESSONS:
        scenes, mix = [first_that(things_differ, photographs, s, canvas, rng.choice((2, 3))) for s in seeds], FIRST_MIX
    elif progress >= LAST_LESSONS and chance < CROWDED:
        scenes, mix = [first_that(crowded, photographs, s, canvas) for s in seeds], CROWDED_MIX
    elif progress >= LAST_LESSONS and chance < 0.8:
        scenes, mix = [draw(photographs, s, canvas=canvas, digits=1.2) for s in seeds], LAST_MIX
    elif chance < 0.25:
        scenes, mix = [first_that(things_differ, photographs, s, canvas, 2) for s in seeds], PAIR_MIX
    elif chance < (0.6 if progress < SECOND_LESSONS else 0.4):
        scenes = [first_that(things_differ, photographs, s, canvas, rng.choice((2, 3, 4))) for s in seeds]
    else:
        most = rng.choice((1, 2, 3, 8, 8, 8))
        scenes = [draw(photographs, s, canvas=canvas, max_things=most, digits=1.2) for s in seeds]
    rows = [questions_for(rng, s, mix) for s in scenes]
    return Lesson(pixels([image_of(s) for s in scenes]), scenes, rows)


Facts = dict[str, str]


def facts_of(thing: Thing) -> Facts:
    """What a caption may say about a thing: attribute to concept."""
    facts = {"size": thing.size, "colour": thing.colour, "shape": thing.shape, "position": thing.position}
    return facts if thing.digit is None else facts | {"digit": str(thing.digit)}


@dataclass
class Captions:
    """Sentences about things: `image` [N] is whose, `said` [N, C] which of the C concepts a sentence says, `other`
    [N, C] which may stand in for the one of their attribute so that the sentence is false of every thing there;
    `fits` [N, B]: whether the sentence fits an image."""

    image: Tensor
    said: Tensor
    other: Tensor
    fits: Tensor


def captions_of(rng: random.Random, scenes: list[Scene], most: int = 4) -> Captions:
    """Up to `most` sentences of each scene, each about two attributes of a thing or more."""
    image: list[int] = []
    sentences: list[Facts] = []
    known = [[facts_of(t) for t in scene.things] for scene in scenes]
    for at, everything in enumerate(known):
        for facts in rng.sample(everything, min(most, len(everything))):
            kept = rng.sample(list(facts), rng.randint(2, len(facts)))
            if "digit" in facts and "digit" not in kept and rng.random() < 0.7:
                kept.append("digit")  # the hardest to read
            image.append(at)
            sentences.append({name: facts[name] for name in kept})
    said, other = torch.zeros(2, len(sentences), len(CONCEPTS))
    for row, (at, facts) in enumerate(zip(image, sentences, strict=True)):
        said[row, [_AT[value] for value in facts.values()]] = 1
        for name in facts:
            rest = {key: value for key, value in facts.items() if key != name}
            true = {thing[name] for thing in known[at] if name in thing and rest.items() <= thing.items()}
            other[row, [_AT[value] for value in VALUES[name] if value not in true]] = 1
    fits = [[any(facts.items() <= thing.items() for thing in things) for things in known] for facts in sentences]
    return Captions(torch.tensor(image), said, other, torch.tensor(fits))
