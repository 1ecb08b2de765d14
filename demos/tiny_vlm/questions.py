"""Questions about a scene with their exact answers, balanced so that the words alone do not give the answer.

>>> scene = make_scene(7, "test")
>>> question = ask(scene, "colour", random.Random(0))
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from .scenes import Scene, Thing, make_scene
from .vocabulary import CANVAS, CELLS, COLOURS, PLURALS, RELATIONS, SHAPES, SIZES, SUPERLATIVES, TEMPLATES

MARGIN = 12  # pixels between centres before "left of" and its like may be asked
MOST = 6  # the highest count asked for
SUPERLATIVE_SHARE = 0.8  # of the names in a relation, where the scene has superlatives
_NAMING: dict[str, tuple[str, ...]] = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES}
_VALUES: dict[str, tuple[Any, ...]] = {**_NAMING, "digit": tuple(range(10)), "position": tuple(CELLS)}


@dataclass(frozen=True)
class Question:
    """A question about a scene, and the one right answer.

    `named`: the names in the text that fit one thing each, in order, with its centre (x, y) in pixels of a canvas of
    112; of superlatives ("the leftmost tile") those in a relation only.
    """

    family: str
    text: str
    answer: str
    named: tuple[tuple[str, float, float], ...] = ()


def _centres(*named: tuple[Thing, str]) -> tuple[tuple[str, float, float], ...]:
    scaled = ((thing, name, CANVAS / thing.canvas) for thing, name in named)
    return tuple((name, thing.cx * scale, thing.cy * scale) for thing, name, scale in scaled)


def phrase(thing: Thing, parts: str = "size colour shape") -> str:
    """What a thing is called by the named attributes; "object" stands for an unnamed shape."""
    names = [getattr(thing, p) for p in ("size", "colour") if p in parts.split()]
    names.append(thing.shape if "shape" in parts.split() else "object")
    return " ".join(names)


def sentence(thing: Thing) -> str:
    """One caption sentence without its full stop: ``a small red circle at the top left``."""
    return _sentence({name: getattr(thing, name) for name in _VALUES})


def _sentence(facts: dict[str, Any]) -> str:
    """The same from facts, of which `size` and `digit` may be missing."""
    words = " ".join(facts[part] for part in _NAMING if part in facts)
    digit = facts.get("digit")
    return f"a {words}{'' if digit is None else f' with the digit {digit}'} at the {facts['position']}"


def caption(scene: Scene) -> str:
    """One sentence a thing, in reading order."""
    return " . ".join(sentence(t) for t in scene.raster) + " ."


def _unique(scene: Scene, forms: tuple[str, ...], pool: list[Thing] | None = None) -> list[tuple[Thing, str]]:
    """(thing, name) for every name of these forms that fits exactly one thing of the scene."""
    out = []
    for form in forms:
        names = [phrase(t, form) for t in scene.things]
        times = Counter(names)
        out += [(t, n) for t, n in zip(scene.things, names, strict=True) if times[n] == 1 and (not pool or t in pool)]
    return out


def _extremes(scene: Scene, shapes: tuple[str, ...] = SHAPES) -> list[tuple[Thing, str]]:
    """The leftmost (topmost, ...) thing of every shape that occurs at least twice, ahead of the next by a margin.

    "object" stands for all shapes.
    """
    options = []
    for shape in shapes:
        group = [t for t in scene.things if shape in (t.shape, "object")]
        if len(group) < 2:
            continue
        for word, (sx, sy) in SUPERLATIVES.items():
            order = sorted(group, key=lambda t: -(sx * t.cx + sy * t.cy))
            if abs(sx * (order[0].cx - order[1].cx) + sy * (order[0].cy - order[1].cy)) >= MARGIN:
                options.append((order[0], f"{word} {shape}"))
    return options


def _ask(rng: random.Random, family: str, **parts: str) -> str:
    return rng.choice(TEMPLATES[family]).format(**parts)


def _about(
    rng: random.Random, family: str, options: list[tuple[Thing, str]], superlative: bool = False
) -> Question | None:
    """A question about an attribute of one of the named things, which has the family's name."""
    if not options:
        return None
    thing, name = rng.choice(options)
    named = () if superlative else _centres((thing, name))
    return Question(family, _ask(rng, family, d=name), str(getattr(thing, family)), named)


def _colour(rng: random.Random, scene: Scene) -> Question | None:
    options = _unique(scene, ("shape", "shape", "size shape"))
    if len(scene.things) == 1:
        options += _unique(scene, ("",))
    digits = Counter(t.digit for t in scene.things)
    readable = [t for t in scene.things if t.digit is not None and digits[t.digit] == 1]
    options += [(t, f"tile with the digit {t.digit}") for t in readable]
    return _about(rng, "colour", options)


def _shape(rng: random.Random, scene: Scene) -> Question | None:
    forms = ("colour", "colour", "size colour") if len(scene.things) > 1 else ("colour", "")
    return _about(rng, "shape", _unique(scene, forms))


def _counts(scene: Scene, form: str) -> dict[str, int]:
    """How often every possible name of a form ("shape", "size colour", "all", ...) occurs, absent ones too."""
    if form == "all":
        return {"object": len(scene.things)}
    values = [names if part in form.split() else ("",) for part, names in _NAMING.items()]
    names = [" ".join(filter(None, (size, colour, shape or "object"))) for size, colour, shape in product(*values)]
    seen = Counter(phrase(t, form) for t in scene.things)
    return {name: seen[name] for name in names}


def _close(rng: random.Random, scene: Scene, names: list[str]) -> list[str]:
    """Of names of two attributes that nothing has, mostly those whose attributes do occur, both or one of them."""
    if len(names[0].split()) - ("object" in names[0]) < 2 or rng.random() >= 0.75:
        return names
    found = {value for t in scene.things for value in (t.size, t.colour, t.shape)}
    found_in = {name: len(found.intersection(name.split())) for name in names}
    wanted = 2 if 2 in found_in.values() and rng.random() < 0.6 else 1
    return [name for name, number in found_in.items() if number == wanted] or names


def _existence(rng: random.Random, scene: Scene) -> Question | None:
    form = rng.choice(("shape", "colour", "colour shape", "colour shape"))
    counts = _counts(scene, form)
    yes = rng.random() < 0.5
    names = [n for n, c in counts.items() if (c > 0) == yes]
    if not names:
        return None
    if not yes:
        names = _close(rng, scene, names)
    return Question("existence", _ask(rng, "existence", x=rng.choice(names)), "yes" if yes else "no")


# Mostly two attributes: which of them one thing has together is the hard part of counting here.
_COUNT_FORMS = {"all": 1, "shape": 2, "colour": 1, "colour shape": 2, "size shape": 2, "size colour": 2}
# Against the rarity of high counts.
_COUNT_WEIGHT = (0.35, 0.45, 1.6, 4.0, 8.0, 14.0, 22.0)


def _count(rng: random.Random, scene: Scene) -> Question | None:
    form = rng.choices(tuple(_COUNT_FORMS), tuple(_COUNT_FORMS.values()))[0]
    by_count: dict[int, list[str]] = {}
    for name, c in _counts(scene, form).items():
        by_count.setdefault(c, []).append(name)
    options = [c for c in by_count if c <= MOST]
    if not options:
        return None
    number = rng.choices(options, [_COUNT_WEIGHT[c] for c in options])[0]
    names = by_count[number] if number else _close(rng, scene, by_count[0])
    words = rng.choice(names).split()
    words[-1] = PLURALS[words[-1]]
    return Question("count", _ask(rng, "count", xs=" ".join(words)), str(number))


def _pairs(scene: Scene) -> list[tuple[Thing, str]]:
    return _unique(scene, ("shape", "colour shape", "colour"))


def _relation(rng: random.Random, scene: Scene) -> Question | None:
    """Two things compared; where the scene has them, most names are superlatives, which take a comparison of their own.

    A superlative only looks across the relation: that the leftmost tile is left of the star the words alone would tell.
    """
    plain, extremes = _pairs(scene), _extremes(scene, (*SHAPES, "object"))
    yes = rng.random() < 0.5
    for _ in range(12):
        word = rng.choice(list(RELATIONS))
        sx, sy = RELATIONS[word]
        across = [e for e in extremes if bool(SUPERLATIVES[e[1].split()[0]][0]) != bool(sx)]
        pools = [across if across and rng.random() < SUPERLATIVE_SHARE else plain for _ in range(2)]
        if not all(pools):
            return None
        (a, name_a), (b, name_b) = (rng.choice(pool) for pool in pools)
        lead = sx * (a.cx - b.cx) + sy * (a.cy - b.cy)
        if abs(lead) < MARGIN:
            continue
        if (lead > 0) != yes:
            a, b, name_a, name_b = b, a, name_b, name_a
        text = _ask(rng, "relation", a=name_a, r=word, b=name_b)
        return Question("relation", text, "yes" if yes else "no", _centres((a, name_a), (b, name_b)))
    return None


def _position(rng: random.Random, scene: Scene) -> Question | None:
    extreme = rng.random() < 0.7 and _about(rng, "position", _extremes(scene), superlative=True)
    return extreme or _about(rng, "position", _pairs(scene))


def _digit(rng: random.Random, scene: Scene) -> Question | None:
    tiles = [t for t in scene.things if t.digit is not None]
    if not tiles:
        return None
    extreme = rng.random() < 0.6 and _about(rng, "digit", _extremes(scene, ("tile",)), superlative=True)
    return extreme or _about(rng, "digit", _unique(scene, ("shape", "colour shape"), tiles))


def _caption(rng: random.Random, scene: Scene) -> Question | None:
    return Question("caption", _ask(rng, "caption"), caption(scene)) if scene.things else None


def _judge(rng: random.Random, scene: Scene) -> Question | None:
    """A sentence about one thing, its size and digit left out at times; true, or with one fact changed to fit none."""
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    sized, yes = rng.random() < 0.5, rng.random() < 0.5
    with_digit = thing.digit is not None and rng.random() < 0.5
    said = ["shape", "colour", "position", *["size"] * sized, *["digit"] * with_digit]
    true = [{name: getattr(t, name) for name in said} for t in scene.things]
    facts = claim = {name: getattr(thing, name) for name in said}
    tries = 0
    while not yes and claim in true:
        if tries == 10:
            return None
        tries += 1
        wrong = rng.choice(said)
        if wrong == "shape" and with_digit:
            continue  # no other shape than a tile carries a digit
        claim = facts | {wrong: rng.choice([value for value in _VALUES[wrong] if value != facts[wrong]])}
    return Question("judge", _ask(rng, "judge", s=_sentence(claim)), "yes" if yes else "no")


_MAKERS: dict[str, Callable[[random.Random, Scene], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "existence": _existence,
    "count": _count,
    "relation": _relation,
    "position": _position,
    "digit": _digit,
    "caption": _caption,
    "judge": _judge,
}
FAMILIES = tuple(_MAKERS)
SCORED = tuple(family for family in FAMILIES if family != "caption")  # those that exact match can score


def ask(scene: Scene, family: str, rng: random.Random) -> Question | None:
    """One random question of a family, or None where the scene allows none."""
    if family not in _MAKERS:
        raise ValueError(f"unknown question family {family!r}: use one of {', '.join(FAMILIES)}")
    return _MAKERS[family](rng, scene)


def by_scene(asked: Iterable[tuple[Any, Question]]) -> list[tuple[Any, list[Question]]]:
    """Scenes or clips, each with all questions about it: the families walk the same seeds."""
    found: dict[int, tuple[Any, list[Question]]] = {}
    for scene, question in asked:
        found.setdefault(scene.seed, (scene, []))[1].append(question)
    return list(found.values())


def benchmark(
    family: str,
    count: int,
    split: str = "test",
    *,
    start: int = 0,
    per_scene: int = 2,
    make: Callable[[int, str], Scene] = make_scene,
) -> Iterator[tuple[Scene, Question]]:
    """``count`` questions of one family on full-size scenes of a split, at most ``per_scene`` different ones per scene.

    Each call walks the split's seeds from ``start`` on and is the same on every machine. `make`: draws a scene of a
    world from its seed and split.
    """
    seed, done = start, 0
    while done < count:
        scene = make(seed, split)
        rng = random.Random(f"{split} {family} {seed}")
        seen: set[str] = set()
        for _ in range(per_scene):
            question = ask(scene, family, rng)
            if question is not None and question.text not in seen and done < count:
                seen.add(question.text)
                done += 1
                yield scene, question
        seed += 1
