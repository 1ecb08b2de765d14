"""Multiple choice: which option an answer means, and MMBench's circular accuracy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vlmprune.accounting.scores import plain

LETTERS = "ABCDEFGHIJ"
_ARTICLE = re.compile(r"(?<![A-Za-z'])A (?!and\b|or\b)[a-z]")


def read_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several.

    In this order: a letter alone or in front ("B", "(B)", "B. a dog"), "the answer is B", the only letter of an option
    that stands by itself as a capital, the option whose text is the answer, the only option whose text is in it.

    Args:
        options: text by letter, "A" on.
    """
    text = answer.strip()
    letters = "".join(options)
    front = re.match(rf"[\(\[]?([{letters}])(?:[\)\]\.:,]+(?=\s|$)|$)", text)
    stated = re.findall(rf"(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*[\(\[]?([{letters}])\b", text)
    alone = re.findall(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z'])", text)
    if front and set(alone) == {front.group(1)}:
        return front.group(1)
    if len(set(stated)) == 1:
        return stated[0]
    # "A dog" starts with an article, not with a letter of choice.
    chosen = {letter for letter in alone if not (letter == "A" and _ARTICLE.search(text))}
    if len(chosen) == 1:
        return chosen.pop()
    if chosen:
        return None
    if re.fullmatch(rf"[{letters.lower()}][\.\)]?", text):
        return text[0].upper()
    said = plain(text)
    same = [letter for letter, option in options.items() if plain(option) == said]
    if len(same) == 1:
        return same[0]
    inside = [
        letter
        for letter, option in options.items()
        if plain(option) and re.search(rf"(?<!\w){re.escape(plain(option))}(?!\w)", said)
    ]
    return inside[0] if len(inside) == 1 else None


def listed(options: Mapping[str, str]) -> str:
    """The options as prompts show them: one line each, `A. text`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Texts by letter, "A" on."""
    return dict(zip(LETTERS, texts, strict=False))


def circular(right: Sequence[bool], questions: Sequence[str]) -> dict[str, bool]:
    """MMBench's circular evaluation (Liu et al., ECCV 2024): a question counts when right in every rotation.

    Args:
        questions: per answer the question it is a rotation of.
    Returns:
        Whether each question passed, in order of first appearance.
    """
    passed: dict[str, bool] = {}
    for hit, question in zip(right, questions, strict=True):
        passed[question] = passed.get(question, True) and hit
    return passed
