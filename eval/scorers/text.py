"""Short answers compared as text: ANLS, relaxed accuracy, containment (exact match is `vlmprune.accounting.scores`)."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.accounting.scores import plain


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (letter != other))
    return row[-1]


def anls(answer: str, truths: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one answer (Biten et al., ICCV 2019): the best truth counts.

    Returns:
        1 - distance / the longer length, 0 where that is below the threshold.
    """
    given = " ".join(answer.lower().split())
    best = 0.0
    for truth in truths:
        right = " ".join(truth.lower().split())
        longest = max(len(given), len(right))
        best = max(best, 1 - edit_distance(given, right) / longest if longest else 1.0)
    return best if best >= threshold else 0.0


def as_number(text: str) -> float | None:
    """The number a chart answer states, "12%" as 0.12; None where it is no number.

    Python's own spellings ("nan", "infinity", "1_000") are no numbers here: NaN would compare as wrong for the wrong
    reason.
    """
    text = text.strip()
    percent = text.endswith("%")
    digits = text.removesuffix("%").strip()
    if not digits or set(digits.lower()) - set("0123456789+-.e"):
        return None
    try:
        value = float(digits)
    except ValueError:
        return None
    return value / 100 if percent else value


def relaxed_accuracy(answer: str, truth: str, tolerance: float = 0.05) -> float:
    """ChartQA (Masry et al., ACL 2022): numbers may be off by 5 % of the truth, all else must match but for case."""
    given, right = as_number(answer.strip().removesuffix(".")), as_number(truth)
    if given is not None and right:  # a truth of 0 has no 5 %, so it is compared as text
        return float(abs(given - right) / abs(right) <= tolerance)
    return float(plain(answer) == plain(truth))


def contains(answer: str, truths: Sequence[str], *, formula: bool = False) -> float:
    """OCRBench (Liu et al., 2023): 1 where any truth stands in the answer.

    Args:
        formula: handwritten expressions (HME100k) are compared with case and without spaces.
    """

    def flat(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if formula else text.lower()

    given = flat(answer)
    return float(any(flat(truth) in given for truth in truths if truth.strip()))
