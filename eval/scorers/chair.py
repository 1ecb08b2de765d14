"""CHAIR (Rohrbach et al., EMNLP 2018): objects a caption names that are not in the image.

A caption's words are matched, longest first, against a table of synonyms, one object a line with its names separated
by commas, as in the authors' `synonyms.txt`. "baby giraffe" is a giraffe; the "plate" of "home plate" is no plate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

NOT_OBJECTS = ("home plate", "train track", "train tracks")
DESCRIBES = ("baby", "adult", "passenger")  # of the animal or vehicle that follows, not a person
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}


def read_synonyms(text: str) -> dict[str, str]:
    """Object by name, from lines `object, name, name, ...`; the first name of a line is the object."""
    table: dict[str, str] = {}
    for line in text.splitlines():
        names = [name.strip().lower() for name in line.split(",") if name.strip()]
        for name in names:
            table.setdefault(name, names[0])
    return table


def singulars(word: str) -> list[str]:
    """What a word may be the plural of, itself first; the table of synonyms knows which of them is a word."""
    out = [word, _IRREGULAR.get(word, word)]
    for ending, instead in (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            out.append(word.removesuffix(ending) + instead)
    return out


def mentions(caption: str, synonyms: Mapping[str, str]) -> list[str]:
    """The objects a caption names, in order, one entry a mention."""
    words = re.findall(r"[a-z0-9']+", caption.lower())
    longest = max((len(name.split()) for name in (*synonyms, *NOT_OBJECTS)), default=1)
    found, at = [], 0
    while at < len(words):
        phrase, name = "", None
        for length in range(min(longest, len(words) - at), 0, -1):
            phrase = " ".join(words[at : at + length])
            name = _name(words[at : at + length], synonyms)
            if phrase in NOT_OBJECTS or name:
                break
        at += len(phrase.split())
        described = phrase in DESCRIBES and at < len(words) and _name(words[at : at + 1], synonyms)
        if name and phrase not in NOT_OBJECTS and not described:
            found.append(synonyms[name])
    return found


def _name(words: list[str], synonyms: Mapping[str, str]) -> str | None:
    """The name in the table that these words are, in the singular or plural."""
    for last in singulars(words[-1]):
        if (name := " ".join([*words[:-1], last])) in synonyms:
            return name
    return None


def chair(said: Iterable[str], truths: Iterable[str]) -> dict[str, int]:
    """One caption's counts, from which every CHAIR number is a ratio of sums.

    Returns:
        `mentions` and the `hallucinated` among them (CHAIR-i is their ratio over all captions), `recalled` and
        `objects` (recall), all counts.
    """
    named, there = list(said), set(truths)
    return {
        "mentions": len(named),
        "hallucinated": sum(name not in there for name in named),
        "recalled": len(there & set(named)),
        "objects": len(there),
    }
