"""How sure a number is: bootstrap standard errors and paired significance, over independent units.

A metric is a ratio of sums over units (pictures, questions with their rotations), so questions that share a picture
are drawn together. U units, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDS = 2000
_CHUNK = 50  # rounds at a time: 50 x 200,000 units are 80 MB


def standard_error(above: Sequence[float], below: Sequence[float], *, seed: int = 0, rounds: int = ROUNDS) -> float:
    """Bootstrap standard error of sum(above) / sum(below), units drawn with replacement: [U], [U]."""
    num, den = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if len(num) < 2:
        return 0.0
    rng, found = np.random.default_rng(seed), []
    for start in range(0, rounds, _CHUNK):
        drawn = rng.integers(0, len(num), (min(_CHUNK, rounds - start), len(num)))
        found.append(_ratio(num[drawn].sum(1), den[drawn].sum(1)))
    return float(np.std(np.concatenate(found), ddof=1))


def paired_p(
    a: tuple[Sequence[float], Sequence[float]],
    b: tuple[Sequence[float], Sequence[float]],
    *,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> float:
    """Two-sided p of "both methods are equally good", from swapping their results on random units.

    Args:
        a, b: numerators and denominators [U] of the two methods on the same units in the same order.
    Returns:
        (1 + rounds in which the difference was at least as large) / (1 + rounds).
    """
    parts = [np.asarray(part, dtype=float) for part in (*a, *b)]
    num_a, den_a, num_b, den_b = parts
    rng, extreme = np.random.default_rng(seed), 0
    actual = abs(float(_ratio(num_a.sum(), den_a.sum()) - _ratio(num_b.sum(), den_b.sum())))
    for start in range(0, rounds, _CHUNK):
        swap = rng.random((min(_CHUNK, rounds - start), len(num_a))) < 0.5
        one = _ratio(np.where(swap, num_b, num_a).sum(1), np.where(swap, den_b, den_a).sum(1))
        other = _ratio(np.where(swap, num_a, num_b).sum(1), np.where(swap, den_a, den_b).sum(1))
        extreme += int((np.abs(one - other) >= actual - 1e-12).sum())
    return (1 + extreme) / (1 + rounds)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
