"""How right a caption of a scene is: every object and attribute is known, so nothing is estimated.

An object's *kind* is its shape; colour, size, position and digit are its attributes. CHAIR follows Rohrbach et al. 2018
(arXiv 1809.02156): CHAIR-i is the fraction of mentions whose kind the image does not hold at all, CHAIR-s the
fraction of captions with at least one such. Recall and precision are stricter: mentions and objects are matched one to
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.optimize import linear_sum_assignment

from vlmprune.captioner.text import sentences, singular, words
from vlmprune.tiny.scenes import Scene, Thing
from vlmprune.tiny.vocabulary import COLOURS, POSITIONS, SHAPES, SIZES

RESAMPLES = 1000  # of a bootstrap
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


FRACTIONS = {  # name -> (numerator, denominator), as sums over captions
    "object_recall": ("matched", "objects"),
    "object_precision": ("matched", "mentions"),
    "named_recall": ("named", "objects"),
    "named_precision": ("named", "mentions"),
    "chair_i": ("absent", "mentions"),
    "chair_s": ("with_absent", "captions"),
    "attribute_accuracy": ("right", "judged"),
    "attribute_recall": ("right", "attributes"),
    "attribute_precision": ("right", "stated"),
    "mentions_a_caption": ("mentions", "captions"),
}


def table(counts: Sequence[Counts]) -> np.ndarray:
    """Counts of N captions as [N, fields]."""
    return np.array([[getattr(one, f.name) for f in fields(Counts)] for one in counts], dtype=float)


def fractions(summed: np.ndarray) -> dict[str, float]:
    """Every fraction of summed counts [..., fields], and the F1 of each recall with its precision."""
    column = {f.name: summed[..., i] for i, f in enumerate(fields(Counts))}
    with np.errstate(invalid="ignore", divide="ignore"):
        out = {name: np.nan_to_num(column[top] / column[bottom]) for name, (top, bottom) in FRACTIONS.items()}
        for kind in ("object", "named", "attribute"):
            recall, precision = out[f"{kind}_recall"], out[f"{kind}_precision"]
            out[f"{kind}_f1"] = np.nan_to_num(2 * recall * precision / (recall + precision))
    return out


def summary(counts: Sequence[Counts], *, resamples: int = RESAMPLES) -> dict[str, dict[str, float]]:
    """Every fraction with its standard error, bootstrapped over captions."""
    values = table(counts)
    total = fractions(values.sum(0))
    spread = fractions(_resampled(values, resamples))
    return {name: {"value": float(total[name]), "standard_error": float(spread[name].std())} for name in total}


def difference(a: Sequence[Counts], b: Sequence[Counts]) -> dict[str, list[float]]:
    """b minus a of every fraction on the same scenes: [difference, 2.5 %, 97.5 %] of a paired bootstrap."""
    first, second = table(a), table(b)
    total = {name: fractions(second.sum(0))[name] - value for name, value in fractions(first.sum(0)).items()}
    one, two = (fractions(_resampled(values)) for values in (first, second))
    return {
        name: [float(total[name]), *(float(v) for v in np.quantile(two[name] - one[name], (0.025, 0.975)))]
        for name in total
    }


def _resampled(values: np.ndarray, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums over captions drawn with replacement [resamples, fields]; the same draws for the same N."""
    rng = np.random.default_rng(0)
    return np.stack([values[rng.integers(0, len(values), len(values))].sum(0) for _ in range(resamples)])
