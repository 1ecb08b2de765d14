"""Procedural scenes and questions: the one import for training, evaluation and the captioner.

>>> scene = make_scene(7, "test")
>>> question = ask(scene, "colour", random.Random(0))
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from .questions import Question, ask, caption, phrase, sentence
from .render import SPLITS, Scene, Thing, make_scene, render
from .vocabulary import CANVAS, COLOURS, FAMILIES, GRID, PATCH, POSITIONS, SHAPES, SIZES

__all__ = [
    "CANVAS",
    "COLOURS",
    "FAMILIES",
    "GRID",
    "PATCH",
    "POSITIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Question",
    "Scene",
    "Thing",
    "ask",
    "benchmark",
    "caption",
    "make_scene",
    "phrase",
    "render",
    "sentence",
]


def benchmark(
    family: str, count: int, split: str = "test", *, start: int = 0, per_scene: int = 2
) -> Iterator[tuple[Scene, Question]]:
    """``count`` questions of one family on full-size scenes of a split, at most ``per_scene`` different ones per scene.

    Each call walks the split's seeds from ``start`` on and is the same on every machine.
    """
    seed, done = start, 0
    while done < count:
        scene = make_scene(seed, split)
        rng = random.Random(f"{split} {family} {seed}")
        seen: set[str] = set()
        for _ in range(per_scene):
            question = ask(scene, family, rng)
            if question is not None and question.text not in seen and done < count:
                seen.add(question.text)
                done += 1
                yield scene, question
        seed += 1
