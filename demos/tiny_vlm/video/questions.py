"""Questions about a clip with their exact answers. `STILL` ones a single frame answers: they are the controls."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from ..questions import Question
from ..vocabulary import CANVAS
from .clips import FRAMES, WAYS, Actor, ClipScene, make_clip

APART = 2  # frames between two things that appear, at least, before their order is asked
_HALF = CANVAS / 2


def _direction(rng: random.Random, clip: ClipScene) -> Question | None:
    pool = [a for a in clip.actors if a.event.kind == "moves"]
    if not pool:
        return None
    actor = rng.choice(pool)
    x, y = WAYS[actor.event.way]
    # Where it goes stands where other questions have a place: it is learnt halfway through the layers.
    named = ((actor.thing.shape, _HALF + 0.8 * _HALF * x, _HALF + 0.8 * _HALF * y),)
    return Question("direction", f"Which way does the {actor.thing.shape} move?", actor.event.way, named)


def _when(actor: Actor) -> tuple[str, float, float]:
    return actor.thing.shape, actor.event.frame * CANVAS / (FRAMES - 1), _HALF


def _appearing(clip: ClipScene) -> list[Actor]:
    return sorted((a for a in clip.actors if a.event.kind == "appears"), key=lambda a: a.event.frame)


def _order(rng: random.Random, clip: ClipScene) -> Question | None:
    late = _appearing(clip)
    first = rng.random() < 0.5
    late = late if first else late[::-1]
    if len(late) < 2 or abs(late[0].event.frame - late[1].event.frame) < APART:
        return None
    return Question("order", f"What appears {'first' if first else 'last'}?", late[0].thing.shape)


def _before(rng: random.Random, clip: ClipScene) -> Question | None:
    late = _appearing(clip)
    pairs = [(a, b) for a in late for b in late if abs(a.event.frame - b.event.frame) >= APART]
    if not pairs:
        return None
    a, b = rng.choice(pairs)
    yes = a.event.frame < b.event.frame
    text = f"Does the {a.thing.shape} appear before the {b.thing.shape}?"
    return Question("before", text, "yes" if yes else "no", (_when(a), _when(b)))


def _blinks(rng: random.Random, clip: ClipScene) -> Question | None:
    blinking = [a for a in clip.actors if a.event.kind == "blinks"]
    rest = [a for a in clip.actors if a.event.kind in ("stays", "moves", "changes")]
    pool = rest if rng.random() < 0.2 else blinking  # a fifth of the answers is none, at most
    if not pool:
        return None
    actor = rng.choice(pool)
    return Question("blinks", f"How many times does the {actor.thing.shape} blink?", str(len(actor.event.away)))


def _end(rng: random.Random, clip: ClipScene) -> Question | None:
    pool = [a for a in clip.actors if a.event.kind == "changes"]
    if not pool:
        return None
    actor, end = rng.choice(pool), rng.random() < 0.5
    answer = actor.event.colour if end else actor.thing.colour
    return Question("end", f"What colour is the {actor.thing.shape} at the {'end' if end else 'start'}?", answer)


def _change(rng: random.Random, clip: ClipScene) -> Question | None:
    yes = rng.random() < 0.5
    pool = [a for a in clip.actors if (a.event.kind == "changes") == yes]
    if not pool:
        return None
    return Question("change", f"Does the {rng.choice(pool).thing.shape} change colour?", "yes" if yes else "no")


def _colour(rng: random.Random, clip: ClipScene) -> Question | None:
    pool = [a for a in clip.actors if a.event.kind in ("stays", "moves")]
    if not pool:
        return None
    actor = rng.choice(pool)
    return Question("colour", f"What colour is the {actor.thing.shape}?", actor.thing.colour)


def _shape(rng: random.Random, clip: ClipScene) -> Question | None:
    changed = {a.event.colour for a in clip.actors}
    pool = [a for a in clip.actors if a.event.kind in ("stays", "moves") and a.thing.colour not in changed]
    if not pool:
        return None
    actor = rng.choice(pool)
    return Question("shape", f"What shape is the {actor.thing.colour} object?", actor.thing.shape)


_MAKERS: dict[str, Callable[[random.Random, ClipScene], Question | None]] = {
    "direction": _direction,
    "order": _order,
    "before": _before,
    "blinks": _blinks,
    "end": _end,
    "change": _change,
    "colour": _colour,
    "shape": _shape,
}
FAMILIES = tuple(_MAKERS)
STILL = ("colour", "shape")


def ask_clip(clip: ClipScene, family: str, rng: random.Random) -> Question | None:
    """One random question of a family, or None where the clip allows none."""
    return _MAKERS[family](rng, clip)


def clip_benchmark(
    family: str, count: int, split: str = "test", *, start: int = 0
) -> Iterator[tuple[ClipScene, Question]]:
    """`count` questions of one family, one a clip, over the split's seeds from `start` on."""
    seed, done = start, 0
    while done < count:
        clip = make_clip(seed, split)
        question = ask_clip(clip, family, random.Random(f"clips {split} {family} {seed}"))
        seed += 1
        if question is not None:
            done += 1
            yield clip, question
