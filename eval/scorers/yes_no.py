"""Yes-or-no questions: POPE and MME.

POPE's own script reads everything without a "no" as "yes", so that an empty answer scores one half: `pope_reading`. As
a person reads (`read_yes_no`), an answer that says neither is wrong whatever the truth, and counted as unreadable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

YES, NO, NEITHER = "yes", "no", ""


def read_yes_no(answer: str) -> str:
    """What the first sentence says: "yes", "no", or "" where it says neither or both.

    A negation ("there is not a dog", "isn't") is a no, as in POPE's script.
    """
    words = re.findall(r"[a-z']+", re.split(r"[.!?\n]", answer.lower().strip(" .!?\n"), maxsplit=1)[0])
    said_yes = YES in words
    said_no = any(word in ("no", "not") or word.endswith("n't") for word in words)
    if words and words[0] in (YES, NO):  # "No, yes would be wrong"
        return words[0]
    if said_yes == said_no:
        return NEITHER
    return YES if said_yes else NO


def pope_reading(answer: str) -> str:
    """POPE's own script (Li et al., EMNLP 2023): "no" where its first sentence has "No", "no" or "not", else "yes"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return NO if {"No", "no", "not"} & set(words) else YES


def mme_reading(answer: str) -> str:
    """MME's own script: "yes" or "no" within the first four letters, else ""."""
    start = answer.strip().lower()[:4]
    return YES if "yes" in start else NO if "no" in start else NEITHER


def confusion(readings: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", the fraction of yes and of unreadable answers: 0..1.

    A ratio without a denominator is 0: an always-no model has precision 0, not an error.
    """
    pairs = list(zip(readings, truths, strict=True))
    hits = sum(r == t == YES for r, t in pairs)
    said, there = sum(r == YES for r, _ in pairs), sum(t == YES for _, t in pairs)

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    return {
        "accuracy": ratio(sum(r == t for r, t in pairs), len(pairs)),
        "precision": ratio(hits, said),
        "recall": ratio(hits, there),
        "f1": ratio(2 * hits, said + there),
        "yes_ratio": ratio(said, len(pairs)),
        "unreadable": ratio(sum(r == NEITHER for r, _ in pairs), len(pairs)),
    }


def mme_scores(right: Sequence[bool], images: Sequence[str]) -> dict[str, float]:
    """One MME subtask: accuracy over questions plus accuracy+ over images whose questions are all right, in percent.

    Returns:
        `accuracy` and `accuracy_plus` 0..100, and their sum `score` 0..200.
    """
    whole: dict[str, bool] = {}
    for hit, image in zip(right, images, strict=True):
        whole[image] = whole.get(image, True) and hit
    accuracy = 100 * sum(right) / len(right) if right else 0.0
    plus = 100 * sum(whole.values()) / len(whole) if whole else 0.0
    return {"accuracy": accuracy, "accuracy_plus": plus, "score": accuracy + plus}
