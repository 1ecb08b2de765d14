"""Letters in answers to multiple choice about videos, each as a benchmark's own script reads them.

Sources: Video-MME's `eval_your_results.py` (MLVU and LongVideoBench follow it), lmms-eval's `mcq_acc` (MVBench) and
word matching (EgoSchema), MMMU's `parse_multi_choice_response` (NExT-QA in lmms-eval).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .vqa import on_one_line, without_punctuation

_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
_APART = ("The best option is", "The correct option is", "Best answer:", "Best option:")
# Two commas are missing in Video-MME's list, so that Python joins its last four prefixes to two.
_GLUED = (_APART[0] + _APART[1], _APART[2] + _APART[3])
_MORE_WORDS = 5  # an answer must have more of them before MMMU's script looks for an option's text


def video_mme_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """Video-MME: the first capital A to D anywhere ("A man ..." is A), after some prefixes were taken out."""
    return _first_capital(answer, (*_PREFIXES, *_GLUED), "ABCD")


def long_video_bench_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """LongVideoBench: the same with E, and without the glued prefixes."""
    return _first_capital(answer, (*_PREFIXES, *_APART), "ABCDE")


def _first_capital(answer: str, prefixes: tuple[str, ...], letters: str) -> str | None:
    text = answer.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    return next((letter for letter in text if letter in letters), None)


def mvbench_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """MVBench: the letter of "B. text", else the first A to E that is a word of its own in either case ("a dog": A)."""
    if found := re.match(r"([A-E])\.\s*.+$", answer.strip(), re.IGNORECASE):
        return found[1].upper()
    text = without_punctuation(on_one_line(answer))
    for mark in "'\")(":
        text = text.strip(mark)
    text = text.strip().lower()
    if found := re.search(r"\b([a-e])\b", text, re.IGNORECASE):
        return found[1].upper()
    return text.upper() if text.upper() in options else None


def mmmu_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """NExT-QA: of all letters in brackets the last, else of those before a space, else of those before a full stop;
    in answers of more than five words without any, the option whose text comes last."""
    said = answer
    for mark in ",.!?;:'":
        said = said.strip(mark)
    said = f" {said} "  # so that a letter at an end has a space beside it
    forms = ("({})", "{} ", "{}.")
    for form in forms:
        if found := [letter for letter in options if form.format(letter) in said]:
            shown = form if form == forms[0] else " {} "
            return _last(found, [said.rfind(shown.format(letter)) for letter in found])
    if len(said.split()) <= _MORE_WORDS:
        return None
    low = said.lower()
    found = [letter for letter, text in options.items() if text.lower() in low]
    return _last(found, [low.rfind(options[letter].lower()) for letter in found]) if found else None


def _last(letters: list[str], places: list[int]) -> str:
    """The letter at the last place, the first one of several that share it."""
    return letters[places.index(max(places))]


def egoschema_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """EgoSchema: the answer is exactly an option ("A. text."), its first sentence, or its letter."""
    whole = {letter: f"{letter}. {text}" for letter, text in options.items()}
    whole = {letter: text if text.endswith(".") else f"{text}." for letter, text in whole.items()}
    sentences = {letter: text.split(". ")[1] for letter, text in whole.items()}
    for said in (whole, sentences, {letter: letter for letter in options}):
        for letter, text in said.items():
            if answer == text:
                return letter
    return None
