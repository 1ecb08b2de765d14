"""How sure a number is: standard errors, paired 95 % intervals and p values, clustered by what is independent.

Every metric here is a ratio of sums over units (questions, captions). Units that share an image are not independent, so
they are added up to clusters first: G clusters of U units. References: the linearised ratio with the CR1 correction
(Miller 2024, arXiv 2411.00640, section 2.2; Cameron and Miller 2015) and the paired permutation test by cluster.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

ROUNDS = 10_000  # of swaps behind a p value
_CHUNK = 500  # rounds at a time: 500 x 50,000 clusters that differ are 200 MB

Ratio = tuple[Sequence[float], Sequence[float] | None]  # numerators and denominators [U]; None: all 1
Clusters = Sequence[Hashable] | None  # [U], which cluster a unit is in; None: each unit is its own


@dataclass(frozen=True)
class Interval:
    """The difference of two metrics on the same units and its 95 % interval."""

    difference: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval does; only then a method is called better or worse."""
        return self.low > 0 or self.high < 0

    def record(self) -> dict[str, float]:
        """JSON-serialisable."""
        return asdict(self)


@dataclass(frozen=True)
class Paired(Interval):
    """The same with its two-sided p."""

    p: float


def standard_error(metric: Ratio, clusters: Clusters = None) -> float:
    """Of sum(numerators) / sum(denominators); 0 where there are fewer than two clusters."""
    return _spread(_influence(*_summed(metric, clusters)))


def interval(a: Ratio, b: Ratio, clusters: Clusters = None) -> Interval:
    """`a` minus `b`, both of the same units in the same order; Student's with G - 1 degrees of freedom.

    One cluster says nothing about others: its interval is everything.
    """
    return _interval(_summed(a, clusters), _summed(b, clusters))


def paired(a: Ratio, b: Ratio, clusters: Clusters = None, *, seed: int = 0, rounds: int = ROUNDS) -> Paired:
    """`interval` with p, which comes from swapping the two results of random clusters.

    p is (1 + rounds in which the difference was at least as large) / (1 + rounds).
    """
    first, second = _summed(a, clusters), _summed(b, clusters)
    return Paired(**_interval(first, second).record(), p=_swapped(first, second, seed, rounds))


def p_value(p: float) -> str:
    """A p value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _interval(first: np.ndarray, second: np.ndarray) -> Interval:
    difference = _ratio(*first.sum(1)) - _ratio(*second.sum(1))
    if first.shape[1] < 2:
        return Interval(difference, -math.inf, math.inf)
    reach = _student(first.shape[1] - 1) * _spread(_influence(*first) - _influence(*second))
    return Interval(difference, difference - reach, difference + reach)


def _summed(metric: Ratio, clusters: Clusters) -> np.ndarray:
    """Numerators and denominators of each cluster [2, G], in the order in which clusters are first met."""
    above = np.asarray(metric[0], dtype=float)
    units = np.stack([above, np.ones_like(above) if metric[1] is None else np.asarray(metric[1], dtype=float)])
    if clusters is None:
        return units
    number = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    out = np.zeros((2, len(number)))
    np.add.at(out.T, np.array([number[name] for name in clusters], dtype=int), units.T)
    return out


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0


def _influence(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """What each cluster moves the ratio by, to first order [G]."""
    total = below.sum()
    return (above - _ratio(above.sum(), total) * below) / total if total else np.zeros_like(above)


def _spread(influence: np.ndarray) -> float:
    """Square root of G / (G - 1) times the sum of squares."""
    count = len(influence)
    return float(np.sqrt(count / (count - 1) * (influence**2).sum())) if count > 1 else 0.0


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion in 1 / freedom: within .3 % from 4 degrees on."""
    z, nu = NormalDist().inv_cdf(0.975), max(1, freedom)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / nu + second / nu**2 + third / nu**3


def _swapped(a: np.ndarray, b: np.ndarray, seed: int, rounds: int) -> float:
    """The permutation's p; clusters without a difference move nothing and are left out of the draws."""
    half, middle = (a - b) / 2, (a + b).sum(1) / 2
    half = half[:, (half != 0).any(0)]
    actual = abs(_ratio(*a.sum(1)) - _ratio(*b.sum(1)))
    rng, extreme = np.random.default_rng(seed), 0
    for start in range(0, rounds, _CHUNK):
        signs = rng.integers(0, 2, (min(_CHUNK, rounds - start), half.shape[1])) * 2.0 - 1
        moved = signs @ half.T  # [rounds, 2]
        one, other = middle + moved, middle - moved
        drawn = np.divide(one[:, 0], one[:, 1], out=np.zeros(len(one)), where=one[:, 1] != 0)
        drawn -= np.divide(other[:, 0], other[:, 1], out=np.zeros(len(other)), where=other[:, 1] != 0)
        extreme += int((np.abs(drawn) >= actual - 1e-12).sum())
    return (1 + extreme) / (1 + rounds)
