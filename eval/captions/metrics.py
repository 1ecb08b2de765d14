"""How right a caption of a scene is: every object and attribute is known, so nothing is estimated.

An object's *kind* is its shape; colour, size, position and digit are its attributes. CHAIR follows Rohrbach et al. 2018
(arXiv 1809.02156): CHAIR-i is the fraction of mentions whose kind the image does not hold at all, CHAIR-s the
fraction of captions with at least one such. Recall and precision are stricter: mentions and objects are matched one to
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from demos.tiny_vlm.scenes import Scene, Thing
from demos.tiny_vlm.vocabulary import COLOURS, POSITIONS, SHAPES, SIZES
from vlmprune.captioner.text import sentences, singular, words
from vlmprune.harness.stats import paired, standard_error

ATTRIBUTES = ("colour", "size", "position", "digit")
PLACES = sorted((place.split() for row in POSITIONS for place in row), key=len, reverse=True)


@dataclass
class Mention:
    """One object a caption names, with the attributes it gives it; None where it gives none."""

    shape: str
    colour: str | None = None
    size: str | None = None
    position: str | None = None
    digit: str | None = None


@dataclass(frozen=True)
class Counts:
    """What one caption got right; sums over captions give every fraction below.

    `objects` of the scene, `mentions` in the caption, `matched` one to one by kind, `named` by kind and colour;
    `absent`: mentions of a kind the scene lacks; `captions` and `with_absent`: 1 or 0 each; `attributes` of the scene's
    objects, `stated` by all mentions, `judged`: stated by matched mentions, `right` among those; `unread`: sentences
    that name no object.
    """

    objects: int = 0
    mentions: int = 0
    matched: int = 0
    named: int = 0
    absent: int = 0
    captions: int = 0
    with_absent: int = 0
    attributes: int = 0
    stated: int = 0
    judged: int = 0
    right: int = 0
    unread: int = 0


def read(text: str) -> tuple[list[Mention], int]:
    """The mentions of a caption, and how many of its sentences name no object."""
    found: list[Mention] = []
    unread = 0
    for sentence in sentences(text):
        own = _read_sentence(words(sentence))
        unread += not own
        found += own
    return found, unread


def _read_sentence(spoken: list[str]) -> list[Mention]:
    """Colour and size stand before the shape; "with the digit 3" and "at the top left" after it."""
    found: list[Mention] = []
    colour = size = None
    at = 0
    while at < len(spoken):
        word = spoken[at]
        place = next((p for p in PLACES if spoken[at : at + len(p)] == p), None)
        if word in COLOURS:
            colour = word
        elif word in SIZES:
            size = word
        elif singular(word) in SHAPES:
            found.append(Mention(singular(word), colour, size))
            colour = size = None
        elif word.isdigit() and found and spoken[at - 1] == "digit":
            found[-1].digit = word
        elif place is not None and found:
            found[-1].position = found[-1].position or " ".join(place)
        at += len(place) if place is not None else 1
    return found


def truth(thing: Thing) -> dict[str, str]:
    """An object's attributes."""
    known = {"colour": thing.colour, "size": thing.size, "position": thing.position}
    return known | ({"digit": str(thing.digit)} if thing.digit is not None else {})


def count(text: str, scene: Scene) -> Counts:
    """Compare one caption with its scene."""
    found, unread = read(text)
    pairs = match(found, scene.things)
    kinds = {thing.shape for thing in scene.things}
    absent = sum(mention.shape not in kinds for mention in found)
    given = [{name: getattr(m, name) for name in ATTRIBUTES if getattr(m, name) is not None} for m in found]
    right = sum(truth(scene.things[j]).get(name) == value for i, j in pairs for name, value in given[i].items())
    left = [(t.shape, t.colour) for t in scene.things]
    named = 0
    for mention in found:
        if (mention.shape, mention.colour) in left:
            left.remove((mention.shape, mention.colour))
            named += 1
    return Counts(
        objects=len(scene.things),
        mentions=len(found),
        matched=len(pairs),
        named=named,
        absent=absent,
        captions=1,
        with_absent=int(absent > 0),
        attributes=sum(len(truth(thing)) for thing in scene.things),
        stated=sum(map(len, given)),
        judged=sum(len(given[i]) for i, _ in pairs),
        right=right,
        unread=unread,
    )


def match(found: Sequence[Mention], things: Sequence[Thing]) -> list[tuple[int, int]]:
    """Pairs (mention, object) of one kind: as many as there can be, and among those the ones that agree most."""
    if not found or not things:
        return []
    gain = np.zeros((len(found), len(things)))
    for i, mention in enumerate(found):
        for j, thing in enumerate(things):
            if mention.shape == thing.shape:
                gain[i, j] = 100 + sum(getattr(mention, name) == value for name, value in truth(thing).items())
    rows, columns = linear_sum_assignment(gain, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if gain[i, j] > 0]


FRACTIONS = {  # name -> (numerator, fields whose sum is the denominator), as sums over captions
    "object_recall": ("matched", ("objects",)),
    "object_precision": ("matched", ("mentions",)),
    "object_f1": ("matched", ("objects", "mentions")),
    "named_recall": ("named", ("objects",)),
    "named_precision": ("named", ("mentions",)),
    "named_f1": ("named", ("objects", "mentions")),
    "chair_i": ("absent", ("mentions",)),
    "chair_s": ("with_absent", ("captions",)),
    "attribute_accuracy": ("right", ("judged",)),
    "attribute_recall": ("right", ("attributes",)),
    "attribute_precision": ("right", ("stated",)),
    "attribute_f1": ("right", ("attributes", "stated")),
    "mentions_a_caption": ("mentions", ("captions",)),
}


def fraction(name: str, counts: Sequence[Counts]) -> tuple[list[float], list[float]]:
    """Numerators and denominators of a fraction, one a caption; F1 is 2 x matched / (objects + mentions)."""
    top, bottom = FRACTIONS[name]
    above = [len(bottom) * float(getattr(one, top)) for one in counts]
    return above, [float(sum(getattr(one, part) for part in bottom)) for one in counts]


def summary(counts: Sequence[Counts]) -> dict[str, dict[str, float]]:
    """Every fraction with its standard error; a scene has one caption, so captions are independent."""
    out = {}
    for name in FRACTIONS:
        above, below = fraction(name, counts)
        value = sum(above) / sum(below) if sum(below) else 0.0
        out[name] = {"value": value, "standard_error": standard_error((above, below))}
    return out


def difference(a: Sequence[Counts], b: Sequence[Counts]) -> dict[str, dict[str, float]]:
    """b minus a of every fraction on the same scenes: `difference`, `low` and `high` of its 95 % interval, `p`."""
    return {name: paired(fraction(name, b), fraction(name, a)).record() for name in FRACTIONS}
