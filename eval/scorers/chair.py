"""CHAIR (Rohrbach et al., EMNLP 2018): objects a caption names that are not in the image.

A caption's words, in the singular, are joined to the authors' double words and looked up in a table of synonyms, one
object a line with its names separated by commas, as in the authors' `synonyms.txt`. "baby giraffe" is a giraffe, the
"plate" of "home plate" is no plate, and the seat of a toilet is no chair.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_DOUBLE = """
motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant, stop sign,
parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass, hot dog, cell phone,
mobile phone, teddy bear, hair drier, potted plant, bow tie, laptop computer, stove top oven, home plate
"""
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
# Two words that are one, and what they are then; "home plate" is no name in the table, so it is nothing.
DOUBLE_WORDS = {
    **{name.strip(): name.strip() for name in _DOUBLE.replace("\n", " ").split(",")},
    **{f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    "bow tie": "tie",
    "toilet seat": "toilet",
}
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
# As NLTK does: "black-and-white" and "cat/dog" stay whole, "'s" and the like and every mark are words of their own.
_ENDING = r"'(?:s|m|d|ll|re|ve)\b|n't\b"
_LETTER = r"(?:(?!n't\b)[^\W_])"
_TOKEN = re.compile(rf"{_ENDING}|{_LETTER}+(?:(?!{_ENDING})['/.-]{_LETTER}+)*|\S")


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
    known = set(synonyms) | {part for double in DOUBLE_WORDS for part in double.split()}
    # A typographic apostrophe is an apostrophe, which NLTK's tokenizer sees as well.
    tokens = _TOKEN.findall(caption.lower().replace("\u2019", "'"))
    words = [next((one for one in singulars(token) if one in known), token) for token in tokens]
    joined, at = [], 0
    while at < len(words):
        double = " ".join(words[at : at + 2])
        joined.append(DOUBLE_WORDS.get(double, words[at]))
        at += 1 + (double in DOUBLE_WORDS)
    if "toilet" in joined:  # its seat is no chair, wherever it stands
        joined = [word for word in joined if word != "seat"]
    return [synonyms[word] for word in joined if word in synonyms]


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
