"""Scorers of own questions: how right an answer is, 0..1, by the name that a user gives.

A scorer is a function of an answer and the right answers; `SCORERS` is the registry. `choice` needs a question's
options beside them and is `read_choice`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from ..accounting.scores import agreement, anls, exact_match, plain

CHOICE = "choice"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORDS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,4})?(?!\w|\.\d)")
# Letters of scripts that put spaces between words; the others' words have no edges to look for.
_LETTER = "[0-9a-z\u00df-\u024f\u0370-\u052f]"
# A capital by itself, neither an article ("A dog") nor a pronoun ("I think"); "A or B" names both.
_APART = re.compile(r"(?<![\w'\u2019])(?![AI] (?!(?:or|and)\b)[a-z])([A-Z])(?![\w'\u2019])")
_NOT = re.compile(r"\b(?:not|no|neither)\b|n['\u2019]t\b")
_RIGHT = r"is (?:the )?(?:correct|right|true|best|answer)\b"  # "A is the answer"
_STATED = r"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(\[*\"']*"


def folded(text: str) -> str:
    """A text as scorers see it: one form of each letter, lower case, single spaces, no full stop at the end."""
    return plain(unicodedata.normalize("NFKC", text))


def exact(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, whatever case and spaces, a full stop at the end aside."""
    return exact_match(folded(answer), [folded(truth) for truth in truths])


def contains(answer: str, truths: Sequence[str]) -> float:
    """1 where a right answer stands in the answer as whole words: "cat" is not in "concatenate"."""
    return float(any(_holds(folded(answer), folded(truth)) for truth in truths))


def _holds(text: str, words: str) -> bool:
    before = r"(?<!\d[.,])" if words[:1].isdigit() else ""  # "3" is not in "3.5"
    after = r"(?![.,]\d)" if words[-1:].isdigit() else ""
    return bool(words) and re.search(rf"(?<!{_LETTER}){before}{re.escape(words)}(?!{_LETTER}){after}", text) is not None


def number(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer states one number, in digits or as a word up to twenty, and it is a right one.

    An answer that states several different numbers is wrong: it cannot be told which one is meant.
    """
    given = numbers_in(answer)
    right = [numbers_in(truth) for truth in truths]
    return float(len(given) == 1 and given in right)


def numbers_in(text: str) -> set[Decimal]:
    """The different numbers that a text states; words count only where there are no digits ("3, and one is red")."""
    text = folded(text)
    digits = {Decimal(one.replace(",", "")) for one in _NUMBER.findall(text)}
    return digits or {Decimal(_WORDS.index(word)) for word in re.findall(r"[a-z]+", text) if word in _WORDS}


def vqa(answer: str, truths: Sequence[str]) -> float:
    """VQA accuracy (Antol et al., ICCV 2015): the mean over the people of min(1, others who answer the same / 3).

    A single truth is compared as it is. Case, punctuation, articles and number words up to ten do not count; the
    official script also mends contractions, where this one ignores apostrophes.
    """
    return agreement(_as_vqa(answer), [_as_vqa(truth) for truth in truths])


def _as_vqa(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d)|['\u2019]", "", folded(text))
    words = re.sub(r"[^\w\s.]|\.(?!\d)", " ", text).split()
    digits = {**dict(zip(_WORDS[:11], map(str, range(11)), strict=True)), "none": "0"}
    return " ".join(digits.get(word, word) for word in words if word not in ("a", "an", "the"))


SCORERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "contains": contains,
    "number": number,
    "anls": anls,
    "vqa": vqa,
}


def read_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several.

    In this order: an option's text, a letter by itself or in front ("(b)", "B. a dog"), a letter after "answer",
    "option" or "choice", the only capital that stands by itself, the only option whose text stands in the answer.

    Args:
        options: text by letter, "A" on.
    """
    text = folded(answer)
    same = [letter for letter, option in options.items() if folded(option) == text]
    if same:
        return same[0] if len(same) == 1 else None
    letters = "".join(options)
    apart = _APART.findall(unicodedata.normalize("NFKC", answer))
    alone = {one for one in apart if one in letters} - ({"I"} if "I" in letters and len(set(apart)) > 1 else set())
    ends = rf"[)\].:,*\"']+(?=\s|$)|$|(?= {_RIGHT})"
    front = re.match(rf"[(\[*\"']*([{letters.lower()}])(?:{ends})", text)
    if front is not None:
        named = front.group(1).upper()
        return named if alone <= {named} else None
    denied = _NOT.search(text) is not None
    if not denied:
        stated = {one.upper() for one in re.findall(rf"{_STATED}([{letters.lower()}])(?![\w'])", text)}
        for found in (stated, alone):
            if len(found) == 1:
                return found.pop()
    inside = {letter: folded(option) for letter, option in options.items() if _holds(text, folded(option))}
    # "the red car" names "red car", not "car"; "not a cat" names an option only if that denies too.
    parts = {short for short in inside.values() for other in inside.values() if other != short and _holds(other, short)}
    whole = [letter for letter, words in inside.items() if words not in parts and (not denied or _NOT.search(words))]
    return whole[0] if len(whole) == 1 and not alone else None
