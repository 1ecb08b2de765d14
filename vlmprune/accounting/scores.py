"""How right an answer is, and how sure a guide is of its own."""

from collections.abc import Sequence


def plain(answer: str) -> str:
    """An answer without what exact match should not see: case, outer spaces, a closing full stop."""
    return " ".join(answer.lower().split()).removesuffix(".").rstrip()


def exact_match(answer: str, truths: str | Sequence[str]) -> float:
    """1.0 where the answer is one of the right ones, else 0.0."""
    right = [truths] if isinstance(truths, str) else truths
    return float(any(plain(answer) == plain(truth) for truth in right))


def sureness(confidence: float, consistency: float) -> float:
    """SGL's S, their mean: what `exit_at` is compared with (arXiv 2412.03324, section 3.2)."""
    return (confidence + consistency) / 2
