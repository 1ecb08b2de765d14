"""Sentences, their words, and what the words say: the little language knowledge that needs no model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

# A full stop ends a sentence unless it stands in a number ("1.5") or in a usual abbreviation ("e.g.", "J. Smith").
_NO_END = "".join(rf"(?<!\b{short}[.])" for short in ("[A-Z]", "e[.]g", "i[.]e", "Mr", "Mrs", "Dr", "St", "vs"))
_END = re.compile(rf"(?<=[.!?]){_NO_END}[\"')\]]*\s+")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)](?=\s))\s*")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

FILLERS = (
    "a an the is are was were be been being am has have had there here it its this that these those and or of in on at "
    "to with by for from as into onto near some which who also can could seen see shows show shown image picture photo "
    "photograph scene"
)
STOP_WORDS = frozenset(FILLERS.split())


def sentences(text: str) -> list[str]:
    """The sentences of a text without their closing stop; bullets and empty pieces go, nothing else does."""
    lines = (_BULLET.sub("", line) for line in text.splitlines())
    pieces = (piece.strip() for line in lines for piece in _END.split(line))
    stripped = (piece.rstrip(" .") if piece.endswith(".") else piece for piece in pieces)
    return [piece for piece in stripped if _WORD.search(piece)]


def words(sentence: str) -> list[str]:
    """Lower-case words in order."""
    return _WORD.findall(sentence.lower())


def singular(word: str) -> str:
    """A noun's likely singular, good enough to compare ("boxes", "dogs", "glass")."""
    if len(word) > 4 and word.endswith(("ses", "xes", "ches", "shes", "sses", "zes")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def joined(parts: list[str]) -> str:
    """Sentences as running text: a capital first, one mark at the end."""
    ended = (part if part.endswith((".", "!", "?")) else part + "." for part in (p.strip() for p in parts) if part)
    return " ".join(part[:1].upper() + part[1:] for part in ended)


@dataclass(frozen=True)
class Statement:
    """What a sentence says: values by property ("colour": {"red"}), and its other words."""

    properties: Mapping[str, frozenset[str]]
    rest: frozenset[str]


@dataclass(frozen=True)
class Lexicon:
    """Properties and the words for their values; a value may be several words ("top left").

    `rest_overlap` is the least Jaccard overlap of the remaining words for two sentences to be about one thing; `apart`
    pairs of values that no one thing has, however much else agrees ("left" and "right"); `weights` of the properties,
    1 where not given: less for those that describers of one thing differ in (how large, where exactly).
    """

    properties: Mapping[str, tuple[str, ...]]
    rest_overlap: float = 0.75
    apart: frozenset[frozenset[str]] = frozenset()
    weights: Mapping[str, float] = field(default_factory=lambda: {"size": 0.5, "place": 0.5, "position": 0.5})
    ignored: frozenset[str] = field(default=STOP_WORDS)

    @cached_property
    def _values(self) -> list[tuple[tuple[str, ...], str]]:
        """(value's words, property), the longest first: "top left" before "top"."""
        values = [(tuple(value.split()), name) for name, group in self.properties.items() for value in group]
        return sorted(values, key=lambda pair: -len(pair[0]))

    def read(self, sentence: str) -> Statement:
        """Take a sentence apart."""
        left = words(sentence)
        found: dict[str, set[str]] = {}
        for value, name in self._values:
            for at in range(len(left) - len(value), -1, -1):
                if tuple(left[at : at + len(value)]) == value:
                    found.setdefault(name, set()).add(" ".join(value))
                    left[at : at + len(value)] = [""]
        rest = frozenset(singular(word) for word in left if word and word not in self.ignored)
        return Statement({name: frozenset(group) for name, group in found.items()}, rest)

    def compare(self, a: Statement, b: Statement) -> tuple[float, float] | None:
        """(agreeing, conflicting) weight of two sentences about one thing; None: about different things.

        They are about one thing when their other words mostly agree and more facts agree than conflict. A property
        that one leaves out neither agrees nor conflicts.
        """
        either = a.rest | b.rest
        both = a.rest & b.rest
        if either and len(both) < self.rest_overlap * len(either):
            return None
        shared = a.properties.keys() & b.properties.keys()
        if any(
            frozenset((x, y)) in self.apart for name in shared for x in a.properties[name] for y in b.properties[name]
        ):
            return None
        weight = {name: self.weights.get(name, 1.0) for name in shared}
        agree = len(both) + sum(weight[name] for name in shared if a.properties[name] == b.properties[name])
        conflict = sum(weight[name] for name in shared if a.properties[name] != b.properties[name])
        return (agree, conflict) if agree > conflict else None


COLOURS = (
    "black white gray grey red green blue yellow orange brown purple pink teal beige silver gold golden tan violet "
    "maroon navy turquoise"
)
NUMBERS = "one two three four five six seven eight nine ten several many"
GENERAL = Lexicon(
    {
        "colour": tuple(COLOURS.split()),
        "size": ("small", "little", "tiny", "medium", "large", "big", "huge", "tall", "short"),
        "number": (*NUMBERS.split(), *(str(n) for n in range(1, 21))),
        "place": ("left", "right", "top", "bottom", "center", "middle", "background", "foreground"),
        "material": ("wooden", "metal", "plastic", "glass", "stone", "brick", "leather", "paper", "concrete"),
    },
    apart=frozenset(map(frozenset, (("left", "right"), ("top", "bottom"), ("background", "foreground")))),
)

_PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_CELLS = {name: (row, column) for row, names in enumerate(_PLACES) for column, name in enumerate(names)}
# The closed world of the bundled pair, where even the kind of a thing is one of eight words.
BUNDLED_LEXICON = Lexicon(
    {
        "size": ("small", "medium", "large"),
        "colour": ("black", "teal", "brown", "gray", "red", "green", "blue", "yellow"),
        "shape": ("circle", "rectangle", "triangle", "star", "cross", "ring", "diamond", "tile"),
        "digit": tuple("0123456789"),
        "position": tuple(_CELLS),
    },
    # A thing near a border of the 3 x 3 grid may be placed on either side of it, but not two cells away.
    apart=frozenset(
        frozenset((a, b))
        for (a, (row, column)), (b, (other_row, other_column)) in combinations(_CELLS.items(), 2)
        if abs(row - other_row) + abs(column - other_column) > 1
    ),
    ignored=STOP_WORDS | {"digit"},
)
