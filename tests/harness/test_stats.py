"""Clustered standard errors, intervals and p values against references written in loops, and against simulation."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from vlmprune.harness.stats import paired, standard_error


def nested(scenes: int, each: int, spread: float, seed: int) -> tuple[list[int], list[float]]:
    """Questions of scenes that are easy or hard as a whole: clusters and 0/1 answers; scenes differ in size."""
    rng = random.Random(seed)
    clusters, right = [], []
    for scene in range(scenes):
        level = min(1.0, max(0.0, 0.7 + rng.uniform(-spread, spread)))
        for _ in range(rng.randint(1, 2 * each - 1)):
            clusters.append(scene)
            right.append(float(rng.random() < level))
    return clusters, right


def sandwich(x: list[float], clusters: list[int]) -> float:
    """Standard error of a least-squares constant: CR1, (X'X)^-1 (sum_g X_g'e_g e_g'X_g) (X'X)^-1 G / (G - 1)."""
    n, mean = len(x), math.fsum(x) / len(x)
    meat = 0.0
    names = sorted(set(clusters))
    for name in names:
        score = 0.0
        for value, mine in zip(x, clusters, strict=True):
            if mine == name:
                score += value - mean
        meat += score * score
    return math.sqrt(meat * len(names) / (len(names) - 1)) / n


def bootstrap(above: list[float], below: list[float], clusters: list[int], rounds: int = 3000) -> list[float]:
    """Ratios of sums over clusters that are drawn with replacement."""
    rng, names = random.Random(1), sorted(set(clusters))
    sums = {name: [0.0, 0.0] for name in names}
    for a, b, name in zip(above, below, clusters, strict=True):
        sums[name][0] += a
        sums[name][1] += b
    out = []
    for _ in range(rounds):
        drawn = rng.choices(names, k=len(names))
        out.append(sum(sums[name][0] for name in drawn) / sum(sums[name][1] for name in drawn))
    return out


@pytest.mark.parametrize("seed", range(5))
def test_the_standard_error_is_the_sandwich(seed: int) -> None:
    clusters, right = nested(60, 5, 0.3, seed)
    assert standard_error((right, None), clusters) == pytest.approx(sandwich(right, clusters), rel=1e-9)
    shuffled = list(zip(clusters, right, strict=True))
    random.Random(seed).shuffle(shuffled)
    again, values = zip(*shuffled, strict=True)
    assert standard_error((values, None), again) == pytest.approx(sandwich(right, clusters), rel=1e-9)


def test_a_ratio_has_the_bootstrap_s_standard_error() -> None:
    """Of precision, whose denominator is random too."""
    clusters, right = nested(150, 3, 0.3, 0)
    rng = random.Random(0)
    below = [float(rng.randint(1, 6)) for _ in right]
    above = [hit * weight for hit, weight in zip(right, below, strict=True)]
    expected = float(np.std(bootstrap(above, below, clusters)))
    assert standard_error((above, below), clusters) == pytest.approx(expected, rel=0.06)


def test_equal_answers_of_a_scene_count_once() -> None:
    right = [1.0] * 75 + [0.0] * 25
    alone = standard_error((right, None))
    assert alone == pytest.approx(math.sqrt(0.75 * 0.25 / 99))
    scenes = [at for at in range(100) for _ in range(4)]
    assert standard_error(([right[at] for at in scenes], None), scenes) == pytest.approx(alone)
    assert standard_error(([right[at] for at in scenes], None)) == pytest.approx(alone / 2, rel=0.01)


def test_of_nothing_and_of_one() -> None:
    assert standard_error(([], None)) == standard_error(([1.0], [1.0])) == 0.0
    assert standard_error(([1.0, 0.0], None), ["same", "same"]) == 0.0


def test_one_image_makes_no_method_better() -> None:
    found = paired(([1.0] * 8, None), ([0.0] * 8, None), ["same"] * 8)
    assert (found.difference, found.p, found.excludes_zero) == (1.0, 1.0, False)


def test_a_difference_is_the_mean_of_pairs_with_the_sandwich_s_error() -> None:
    clusters, a = nested(80, 4, 0.3, 1)
    b = [float(random.Random(at).random() < 0.6) for at in range(len(a))]
    found = paired((a, None), (b, None), clusters)
    pairs = [x - y for x, y in zip(a, b, strict=True)]
    assert found.difference == pytest.approx(sum(pairs) / len(pairs))
    t = 1.99045  # Student's table, 97.5 %, 79 degrees of freedom
    assert (found.high - found.low) / 2 == pytest.approx(t * sandwich(pairs, clusters), rel=1e-5)


@pytest.mark.parametrize(("freedom", "t"), [(4, 2.77645), (9, 2.26216), (29, 2.04523)])
def test_few_clusters_widen_the_interval(freedom: int, t: float) -> None:
    right = [float(at % 2) for at in range(freedom + 1)]
    found = paired((right, None), ([0.0] * len(right), None))
    assert (found.high - found.low) / 2 == pytest.approx(t * standard_error((right, None)), rel=0.003)


def test_nineteen_of_twenty_intervals_hold_the_truth_and_unclustered_ones_do_not() -> None:
    """Two equally good methods whose answers differ by scene: 95 % is what the interval promises."""
    held = {True: 0, False: 0}
    for trial in range(300):
        rng = np.random.default_rng(trial)
        scenes = np.repeat(np.arange(40), 6)
        level = np.repeat(rng.uniform(-0.4, 0.4, 40), 6)  # what the scene does to one of them
        a, b = (rng.random(240) < 0.5 + level).astype(float), (rng.random(240) < 0.5).astype(float)
        for clustered in held:
            found = paired((a, None), (b, None), scenes.tolist() if clustered else None, rounds=1)
            held[clustered] += found.low <= 0 <= found.high
    assert 276 <= held[True] <= 294  # 285 +- 2.4 standard errors
    assert held[False] < 270


def exact(differences: list[float]) -> float:
    """Two-sided p over all sign patterns of cluster differences."""
    actual = abs(sum(differences))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    return sum(abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= actual for signs in patterns) / len(
        patterns
    )


def test_p_is_the_exact_one_over_clusters() -> None:
    """Ten scenes of three questions: all 2^10 swaps by hand; unclustered, p would be many times smaller."""
    a, b, clusters = [], [], []
    for scene, (x, y) in enumerate([(3, 0)] * 4 + [(0, 1)] * 2 + [(2, 2)] * 4):
        a += [1.0] * x + [0.0] * (3 - x)
        b += [1.0] * y + [0.0] * (3 - y)
        clusters += [scene] * 3
    expected = exact([3.0] * 4 + [-1.0] * 2)
    assert paired((a, None), (b, None), clusters).p == pytest.approx(expected, abs=0.015)
    assert paired((a, None), (b, None)).p < expected / 5


def test_p_of_ratios_swaps_both_parts() -> None:
    """Precision of two methods that make different numbers of mentions, all 2^8 swaps in a loop."""
    rng = random.Random(3)
    rows = [(rng.randint(0, 2), rng.randint(2, 5), rng.randint(1, 4), rng.randint(4, 6)) for _ in range(8)]
    a, b = ([r[0] for r in rows], [r[1] for r in rows]), ([r[2] for r in rows], [r[3] for r in rows])
    seen = []
    for swaps in itertools.product((False, True), repeat=8):
        one = [0.0] * 4
        for (p, q, r, s), swap in zip(rows, swaps, strict=True):
            for at, value in enumerate((r, s, p, q) if swap else (p, q, r, s)):
                one[at] += value
        seen.append(abs(one[0] / one[1] - one[2] / one[3]))
    expected = sum(value >= seen[0] - 1e-12 for value in seen) / len(seen)
    assert 0.005 < expected < 0.9
    assert paired(a, b).p == pytest.approx(expected, abs=0.015)


def test_equal_results_differ_by_nothing() -> None:
    ones = ([1.0, 0.0] * 25, None)
    assert vars(paired(ones, ones)) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert not paired(ones, ones).excludes_zero


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    found = [paired((rng.integers(0, 2, 100), None), (rng.integers(0, 2, 100), None), rounds=200).p for _ in range(100)]
    assert 0.01 <= np.mean(np.array(found) < 0.1) <= 0.2
