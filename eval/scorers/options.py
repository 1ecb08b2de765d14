"""Multiple choice: which option an answer means, and MMBench's circular accuracy."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from vlmprune.accounting.scores import plain

LETTERS = "ABCDEFGHIJ"
SCIENCEQA = "ABCDE"
_ARTICLE = re.compile(r"(?<![A-Za-z'])A (?!and\b|or\b)[a-z]")
_STATED = r"(?i:answer|option|choice)(?i:\s+(?:is|would\s+be|should\s+be))?\s*:?\s*\**[\(\[]?"
_DENIED = re.compile(
    r"(?i)\b(?:not|isn't|cannot\s+be|can't\s+be|neither|nor|except|rather\s+than|never)\s+"
    r"(?:the\s+)?(?:answer\s+|option\s+|choice\s+)?[\(\[]?$"
)
_REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer", "Failed to obtain answer via API",
)  # fmt: skip


def read_option(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that an answer names, None where it names none or several.

    In this order: a letter alone or in front ("B", "B. a dog"), the only one in brackets ("(b)"), "the answer is B" or
    "option b", the only letter of an option that stands by itself as a capital, the option whose text is the answer,
    the only option whose text is in it. Full-width letters are letters, and a letter that is denied ("the answer is not
    A") is not named.

    Args:
        options: text by letter, "A" on.
    """
    text = unicodedata.normalize("NFKC", answer).strip().strip("*").strip()
    letters = "".join(options)
    if not letters:
        return None
    either = letters + letters.lower()
    if whole := re.fullmatch(rf"[\(\[]?([{either}])[\)\]\.:,]*", text):
        return whole[1].upper()
    alone = _not_denied(rf"(?<![A-Za-z'])([{letters}])(?![A-Za-z'])", text)
    front = re.match(rf"[\(\[]?([{letters}])[\)\]\.:,]+(?=\s)", text)
    if front and set(alone) == {front[1]}:
        return front[1]
    bracketed = {one.upper() for one in _not_denied(rf"(?<!\w)[\(\[]([{either}])[\)\]]", text)}
    if len(bracketed) == 1 and set(alone) <= bracketed:
        return bracketed.pop()
    # In small letters only in brackets or at the end: "the answer is a dog" names none.
    stated = _not_denied(_STATED + rf"([{letters}])\b", text)
    stated += _not_denied(_STATED + rf"(?<=[\(\[])([{letters.lower()}])(?=[\)\]])", text)
    stated += _not_denied(_STATED + rf"([{letters.lower()}])(?=[\.\)\]\s\*]*$)", text)
    if len({one.upper() for one in stated}) == 1:
        return stated[0].upper()
    # "A dog" starts with an article, not with a letter of choice.
    chosen = {letter for letter in alone if not (letter == "A" and _ARTICLE.search(text))}
    if len(chosen) == 1:
        return chosen.pop()
    return None if chosen else _by_text(plain(text), options)


def _not_denied(pattern: str, text: str) -> list[str]:
    """The letters that a pattern finds, without those that stand behind a "not"."""
    return [one[1] for one in re.finditer(pattern, text) if not _DENIED.search(text[: one.start(1)])]


def _by_text(said: str, options: Mapping[str, str]) -> str | None:
    """The option whose text is what was said, or the only one whose text is in it."""
    texts = {letter: plain(unicodedata.normalize("NFKC", option)) for letter, option in options.items()}
    same = [letter for letter, text in texts.items() if text == said]
    if len(same) == 1:
        return same[0]
    inside = [
        letter
        for letter, text in texts.items()
        if text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said) and f"not {text}" not in said
    ]
    return inside[0] if len(inside) == 1 else None


def kit_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """What VLMEvalKit infers without its judge (Duan et al., 2024): an option's letter, "Z" for a refusal, or None.

    The only letter among the words, one of the last four, else the only option whose text is in the answer, which is
    at most twice as long as all options together.
    """
    if _REFUSALS[-1] not in answer:
        if any(refusal in answer for refusal in _REFUSALS):
            return "Z"
        words = re.sub(r"[.()\[\],:;!*#{}]", " ", answer).split()
        named = [letter for letter in options if letter in words]
        if len(named) == 1 and words.index(named[0]) > len(words) - 5:
            return named[0]
        if not named and "Z" in words:
            return "Z"
    said = answer.lower()
    if len(said) > 2 * sum(map(len, options.values())):
        return None
    inside = [letter for letter, option in options.items() if option.lower() in said]
    return inside[0] if len(inside) == 1 else None


def kit_or_person(answer: str, options: Mapping[str, str]) -> str | None:
    """MMBench, SEED-Bench and AI2D: what VLMEvalKit infers, and where it would ask a judge model, what a person reads.

    A letter that the answer denies goes to the person too: the kit reads "The answer is not A." as A.
    """
    found = kit_reading(answer, options)
    if found is not None and re.search(rf"(?<![A-Za-z']){found}(?![A-Za-z'])", answer):
        found = found if _not_denied(rf"(?<![A-Za-z'])({found})(?![A-Za-z'])", answer) else None
    if found == "Z" and "Z" not in options:
        return None
    return found or read_option(answer, options)


def scienceqa_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """ScienceQA as LLaVA's script reads it: "B", "B. ...", or "The answer is B"; all else is wrong."""
    text = answer.replace("\n", ". ")
    if text.strip() in SCIENCEQA:
        found = text.strip()
    elif len(text) >= 3 and text[0] in SCIENCEQA and text[1:3] == ". ":
        found = text[0]
    elif stated := re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text):
        found = stated[1]
    else:
        return None
    return found if found in options else None


def mmstar_reading(answer: str, options: Mapping[str, str]) -> str | None:
    """MMStar's own script: the first letter, or the one after "(", "option " or "the answer is "; case is ignored."""
    text = answer.lower().strip().replace("\n", " ")
    for start in ("", "(", "option ", "the answer is "):
        if text.startswith(start) and text[len(start) : len(start) + 1].upper() in options:
            return text[len(start)].upper()
    return None


def listed(options: Mapping[str, str]) -> str:
    """The options as prompts show them: one line each, `A. text`."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """Texts by letter, "A" on; an empty one is no option, and the others keep their letters."""
    return {letter: text for letter, text in zip(LETTERS, texts, strict=False) if text.strip()}


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
