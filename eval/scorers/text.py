"""Short answers compared as text; exact match and ANLS are in `vlmprune.accounting.scores`."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.accounting.scores import plain


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
    """ChartQA (Masry et al., ACL 2022): numbers may be off by 5 % of the truth, all else must match but for case.

    As in the script that results are reported with (Pix2Struct's): a number is what Python's `float` takes.
    """

    def number(text: str) -> float | None:
        try:
            return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return None

    given, right = number(answer), number(truth)
    if given is not None and right:  # a truth of 0 has no 5 %, so it is compared as text
        return float(abs(given - right) / abs(right) <= tolerance)
    return float(answer.lower() == truth.lower())


def relaxed_by_person(answer: str, truth: str, tolerance: float = 0.05) -> float:
    """The same as a person compares: no outer spaces, no closing full stop, and "nan" or "1_000" are no numbers."""
    given, right = as_number(answer.strip().removesuffix(".")), as_number(truth)
    if given is not None and right:  # a truth of 0 has no 5 %, so it is compared as text
        return float(abs(given - right) / abs(right) <= tolerance)
    return float(plain(answer) == plain(truth))


def gqa_match(answer: str, truth: str) -> float:
    """GQA (Hudson and Manning, CVPR 2019): equal to the truth, after LLaVA's conversion: no case, no closing stops."""
    return float(answer.strip().rstrip(".").lower() == truth)


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
