"""Budgets and selection against plain loops and the definition in words."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmprune import VlmpruneError
from vlmprune.flow.locate import ImageSpan, plain_grid
from vlmprune.flow.select import check_keep, coarser_grid, count_for, every_nth, top_k_per_image, top_p_counts


def spans(*counts: int) -> list[ImageSpan]:
    out, start = [], 0
    for number, count in enumerate(counts):
        grid = plain_grid(1, count)
        out.append(ImageSpan(number, torch.arange(start, start + count), count, grid.grid, grid.xy))
        start += count
    return out


@given(st.integers(1, 1000), st.integers(1, 3000))
def test_a_share_is_rounded_half_up_and_never_zero(thousandths: int, visual: int) -> None:
    exact = Decimal(thousandths) / 1000 * visual
    wanted = max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
    assert count_for(thousandths / 1000, visual) == wanted


def test_halves_round_up_where_binary_floats_would_not() -> None:
    assert 0.29 * 50 < 14.5  # 14.499999999999998
    assert count_for(0.29, 50) == 15
    assert [count_for(0.5, v) for v in (1, 3, 5)] == [1, 2, 3]


def test_an_int_is_a_number_of_tokens_capped_at_what_there_is() -> None:
    assert (count_for(1, 196), count_for(64, 196), count_for(500, 196)) == (1, 64, 196)
    assert (count_for(1.0, 196), count_for(0.0001, 196)) == (196, 1)


@pytest.mark.parametrize("keep", [0, -1, 0.0, -0.1, 1.5, float("nan"), float("inf"), "x", None, True])
def test_bad_budgets_say_the_value_and_the_remedy_in_one_sentence(keep: object) -> None:
    with pytest.raises(VlmpruneError, match=r"^keep=.*; use a float in \(0, 1\].*\.$"):
        check_keep(keep)  # type: ignore[arg-type]  # bad on purpose


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0.01, 1.0), st.integers(0, 9))
def test_top_k_keeps_the_best_of_every_image_in_original_order(counts: list[int], keep: float, seed: int) -> None:
    images = spans(*counts)
    scores = torch.rand(sum(counts), generator=torch.Generator().manual_seed(seed)).mul(5).round()  # with ties
    budgets = [count_for(keep, count) for count in counts]
    kept = top_k_per_image(scores, images, budgets).tolist()
    wanted = []
    for span, budget in zip(images, budgets, strict=True):
        best = sorted(span.positions.tolist(), key=lambda v: (-float(scores[v]), v))
        wanted += sorted(best[:budget])
    assert kept == wanted


def test_nan_scores_raise_instead_of_choosing_anything() -> None:
    with pytest.raises(VlmpruneError, match="NaN"):
        top_k_per_image(torch.tensor([0.1, float("nan")]), spans(2), [1])


@given(st.integers(1, 200), st.floats(0.01, 1.0))
def test_every_nth_is_evenly_spaced(count: int, keep: float) -> None:
    kept = every_nth(spans(count), [count_for(keep, count)])
    assert len(kept) == count_for(keep, count) == len(set(kept.tolist()))
    if len(kept) > 1:
        gaps = kept.diff()
        assert int(gaps.max() - gaps.min()) <= 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 1600))
def test_a_coarser_grid_fits_and_is_no_finer(h: int, w: int, count: int) -> None:
    rows, cols = coarser_grid(h, w, count)
    assert 1 <= rows <= h
    assert 1 <= cols <= w
    assert rows * cols <= count


def test_a_coarser_grid_keeps_the_aspect() -> None:
    assert coarser_grid(14, 14, 49) == (7, 7)
    assert coarser_grid(14, 14, 13) == (3, 4)  # not 1 x 13
    assert coarser_grid(24, 24, 58) == (7, 8)  # not 3 x 19, which has a token more
    assert coarser_grid(14, 14, 1) == (1, 1)
    assert coarser_grid(24, 12, 72) == (12, 6)


def smallest(scores: list[float], top_p: float, least: int, most: int) -> int:
    """The definition in words: the smallest k whose k largest hold `top_p` of the whole, between the bounds."""
    whole = sum(Fraction(max(0.0, one)) for one in scores)
    best = sorted((Fraction(max(0.0, one)) for one in scores), reverse=True)
    found = next(k for k in range(1, len(best) + 1) if sum(best[:k]) >= Fraction(top_p) * whole)
    return min(most, max(least, found))


@given(
    st.lists(st.integers(-3, 40), min_size=2, max_size=40).filter(
        lambda one: max(one[:2]) > 0 and max(one[2:], default=1) > 0
    ),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.875, 1.0]),
    st.integers(1, 5),
    st.sampled_from([0.25, 0.5, 1.0, 7]),
)
def test_top_p_keeps_the_smallest_set_that_holds_so_much(
    weights: list[int], top_p: float, floor: int, keep: float | int
) -> None:
    scores = [float(one) for one in weights]
    images = spans(2, len(scores) - 2) if len(scores) > 2 else spans(2)
    found = top_p_counts(torch.tensor(scores), images, top_p, floor, keep)
    for span, count in zip(images, found, strict=True):
        own = [scores[i] for i in span.positions.tolist()]
        assert count == smallest(own, top_p, min(floor, len(own)), count_for(keep, len(own)))


def test_scores_without_weight_are_no_top_p() -> None:
    with pytest.raises(VlmpruneError, match="scores as weights, and none of image 1 is above zero"):
        top_p_counts(torch.tensor([1.0, 2.0, -1.0, 0.0]), spans(2, 2), 0.5, 1, 1.0)
