"""Dividing an image: properties for any boxes, and cases worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmprune import VlmpruneError
from vlmprune.captioner import CaptionConfig, divide
from vlmprune.captioner.divide import (
    QUADRANTS,
    Box,
    Detection,
    Patch,
    area,
    hull,
    intersection,
    iou,
    pixel_box,
    quadrants,
    usable,
)

sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
coordinates = st.floats(-500, 4500, allow_nan=False)
detections = st.lists(
    st.builds(
        Detection,
        st.tuples(coordinates, coordinates, coordinates, coordinates),
        st.floats(0, 1),
        st.sampled_from(["", "dog", "cup"]),
    ),
    max_size=12,
)


PAPER = CaptionConfig()


def confident(found: Sequence[Detection]) -> list[Detection]:
    return divide.confident(found, threshold=PAPER.score_threshold, fallback=PAPER.fallback_boxes)


def merge(boxes: Sequence[Box]) -> list[Box]:
    return divide.merge(boxes, above=PAPER.merge_iou)


def spatial_patches(found: Sequence[Detection], size: tuple[int, int]) -> list[Patch]:
    boxes = [one.box for one in confident(usable(found, size))]
    return divide.spatial_patches(boxes, size, merge_above=PAPER.merge_iou, fraction=PAPER.assign_share)


def semantic_patch(boxes: Sequence[Box], size: tuple[int, int]) -> Patch | None:
    return divide.semantic_patch(boxes, size, most_iou=PAPER.semantic_iou)


def adjacent_pairs(patches: Sequence[Patch]) -> list[tuple[int, int]]:
    return divide.adjacent_pairs(patches, above=PAPER.patch_iou)


def inside(inner: Box, outer: Box) -> bool:
    return all(i >= o for i, o in zip(inner[:2], outer[:2], strict=True)) and all(
        i <= o for i, o in zip(inner[2:], outer[2:], strict=True)
    )


# -- properties --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(detections, sizes)
def test_patches_of_any_boxes(found: list[Detection], size: tuple[int, int]) -> None:
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    patches = spatial_patches(found, size)
    assert [patch.name for patch in patches] == list(QUADRANTS)
    for patch, quadrant in zip(patches, quadrants(size), strict=True):
        assert inside(quadrant, patch.box)
        assert inside(patch.box, whole)
        assert patch.box == hull((quadrant, *patch.objects))
        for box in patch.objects:
            assert inside(box, patch.box)


@settings(deadline=None)
@given(detections, sizes)
def test_no_object_is_cut_or_forgotten(found: list[Detection], size: tuple[int, int]) -> None:
    whole = (0.0, 0.0, float(size[0]), float(size[1]))
    boxes = merge([one.box for one in confident(usable(found, size))] or [whole])
    patches = spatial_patches(found, size)
    for box in boxes:
        holders = [patch for patch in patches if box in patch.objects]
        assert holders
        held = [intersection(box, quadrant) / area(box) for quadrant in quadrants(size)]
        for patch, part in zip(patches, held, strict=True):
            if part > 0.3:
                assert inside(box, patch.box)
            elif box in patch.objects:  # only where no quadrant holds more than 0.3
                assert max(held) <= 0.3
                assert part >= max(held) - 1e-9


@settings(deadline=None)
@given(detections, sizes)
def test_merging_leaves_no_overlap_and_loses_no_area(found: list[Detection], size: tuple[int, int]) -> None:
    boxes = [one.box for one in usable(found, size)]
    merged = merge(boxes)
    assert all(iou(a, b) <= 0.3 + 1e-9 for i, a in enumerate(merged) for b in merged[i + 1 :])
    assert all(any(inside(box, one) for one in merged) for box in boxes)
    assert len(merged) <= len(boxes)


@settings(deadline=None)
@given(detections, sizes)
def test_crops_are_never_empty(found: list[Detection], size: tuple[int, int]) -> None:
    for patch in spatial_patches(found, size):
        x0, y0, x1, y1 = pixel_box(patch.box, size)
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]


@settings(deadline=None)
@given(detections, sizes)
def test_the_semantic_patch_is_small_or_absent(found: list[Detection], size: tuple[int, int]) -> None:
    boxes = [one.box for one in usable(found, size)]
    patch = semantic_patch(boxes, size)
    if patch is not None:
        assert iou(patch.box, (0, 0, *size)) <= 0.4
        assert all(inside(box, patch.box) for box in boxes)


# -- by hand, on an image of 100 x 100 -----------------------------------------------------------------------------
# Quadrants: (0, 0, 50, 50) (50, 0, 100, 50) (0, 50, 50, 100) (50, 50, 100, 100).

SIZE = (100, 100)
TL, TR, BL, BR = quadrants(SIZE)


def boxes(*found: Box) -> list[Box]:
    return [patch.box for patch in spatial_patches([Detection(box) for box in found], SIZE)]


def test_an_object_inside_one_quadrant_changes_nothing() -> None:
    assert boxes((10, 10, 30, 30)) == [TL, TR, BL, BR]


def test_an_object_across_an_edge_joins_both_sides() -> None:
    # 40..60: half of it on either side of x = 50, both halves 0.5 > 0.3.
    assert boxes((40, 10, 60, 30)) == [(0, 0, 60, 50), (40, 0, 100, 50), BL, BR]


def test_an_object_mostly_on_one_side_joins_only_that() -> None:
    # 30..55: 20 of 25 columns left of x = 50 (0.8), 5 right of it (0.2).
    assert boxes((30, 10, 55, 30)) == [(0, 0, 55, 50), TR, BL, BR]


def test_the_share_is_of_the_object_and_must_be_exceeded() -> None:
    # 0.3 of ten columns is three: exactly 0.3 on the right joins not, a little more does.
    assert boxes((43, 10, 53, 20)) == [(0, 0, 53, 50), TR, BL, BR]
    assert boxes((43.1, 10, 53.1, 20)) == [(0, 0, 53.1, 50), (43.1, 0, 100, 50), BL, BR]


def test_a_centred_object_joins_the_quadrant_that_holds_most() -> None:
    # (39, 39, 59, 59): 11 x 11 of 20 x 20 in the top left = 0.3025 > 0.3, so by the plain rule; (41, 41, 61, 61):
    # 9 x 9, 11 x 9, 9 x 11 and 11 x 11 = 0.2025, 0.2475, 0.2475, 0.3025.
    assert boxes((41, 41, 61, 61)) == [TL, TR, BL, (41, 41, 100, 100)]
    # (40.5, 40.5, 60.5, 60.5): 0.226, 0.249, 0.249, 0.276: none above 0.3, the bottom right holds most.
    assert boxes((40.5, 40.5, 60.5, 60.5)) == [TL, TR, BL, (40.5, 40.5, 100, 100)]


def test_an_exactly_centred_object_joins_the_first_quadrant() -> None:
    assert boxes((40, 40, 60, 60)) == [(0, 0, 60, 60), TR, BL, BR]


def test_a_large_object_off_the_middle_joins_two() -> None:
    # (10, 20, 90, 60): above y = 50 lie 30 of 40 rows, halved by x = 50: 0.375 each; below 0.125 each.
    assert boxes((10, 20, 90, 60)) == [(0, 0, 90, 60), (10, 0, 100, 60), BL, BR]


def test_overlapping_boxes_become_one() -> None:
    # IoU = 15 x 20 / (20 x 20 + 20 x 20 - 300) = 300 / 500 = 0.6.
    assert merge([(10, 10, 30, 30), (15, 10, 35, 30)]) == [(10, 10, 35, 30)]


def test_merging_goes_on_until_nothing_overlaps() -> None:
    # a, b: 200 / 600 = 0.33; their hull (0, 0, 30, 20) and c: 15 x 20 / (600 + 400 - 300) = 0.43, though b, c alone
    # have 300 / 500 = 0.6 and go first: hull (10, 0, 35, 20), then with a: 200 / 700 = 0.286, which stays.
    a, b, c = (0, 0, 20, 20), (10, 0, 30, 20), (15, 0, 35, 20)
    assert merge([a, b, c]) == [a, (10, 0, 35, 20)]
    assert merge([a, b]) == [(0, 0, 30, 20)]


def test_an_iou_of_exactly_the_threshold_stays() -> None:
    # 3 x 10 / (65 + 65 - 30) = 0.3.
    assert len(merge([(0, 0, 6.5, 10), (3.5, 0, 10, 10)])) == 2


def test_boxes_that_only_touch_stay_apart() -> None:
    assert len(merge([(0, 0, 10, 10), (10, 0, 20, 10)])) == 2


def test_low_scores_fall_back_to_the_two_best() -> None:
    found = [Detection((0, 0, 9, 9), 0.1), Detection((60, 60, 70, 70), 0.3), Detection((20, 20, 29, 29), 0.2)]
    assert [one.score for one in confident(found)] == [0.3, 0.2]  # 0.3 is not above 0.3
    assert [one.score for one in confident([*found, Detection((1, 1, 5, 5), 0.31)])] == [0.31]


def test_without_detections_the_image_is_the_object() -> None:
    # A quarter in each quadrant: none above 0.3, a tie, so the first takes it whole.
    assert boxes() == [(0, 0, 100, 100), TR, BL, BR]


def test_odd_sizes_are_halved_exactly_and_cropped_without_a_gap() -> None:
    parts = quadrants((5, 3))
    assert parts[0] == (0, 0, 2.5, 1.5)
    assert [pixel_box(part, (5, 3)) for part in parts] == [(0, 0, 3, 2), (2, 0, 5, 2), (0, 1, 3, 3), (2, 1, 5, 3)]


def test_boxes_outside_are_cut_or_dropped() -> None:
    found = [Detection((-10, -10, 10, 10)), Detection((200, 0, 300, 10)), Detection((5, 5, 5, 9))]
    assert [one.box for one in usable(found, SIZE)] == [(0, 0, 10, 10)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_raise(bad: float) -> None:
    with pytest.raises(VlmpruneError, match="finite"):
        usable([Detection((0, 0, bad, 10))], SIZE)
    with pytest.raises(VlmpruneError, match="finite"):
        usable([Detection((0, 0, 10, 10), bad)], SIZE)


def test_only_patches_side_by_side_are_paired() -> None:
    # The object joins both upper quadrants: (0, 0, 90, 50) and (10, 0, 100, 50), IoU 80 / 100 = 0.8.
    patches = spatial_patches([Detection((10, 10, 90, 40))], SIZE)
    assert adjacent_pairs(patches) == [(0, 1)]
    assert adjacent_pairs(spatial_patches([Detection((1, 1, 5, 5))], SIZE)) == []


@pytest.mark.parametrize("size", [(100, 100), (7, 3)])
def test_adjacent_patches_are_those_whose_quadrants_share_a_side(size: tuple[int, int]) -> None:
    """Patch Matters (arXiv 2504.06666, "Aggregate") fuses *adjacent* patches: the quadrants meet in a line. Those
    across the corner meet in a point, however much of each other their patches cover."""

    def share_a_side(a: Box, b: Box) -> bool:
        across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        return (across == 0 and down > 0) or (down == 0 and across > 0)

    parts = quadrants(size)
    wanted = [(i, j) for i in range(4) for j in range(i + 1, 4) if share_a_side(parts[i], parts[j])]
    assert wanted == [(0, 1), (0, 2), (1, 3), (2, 3)]
    everything = [Patch(name, (0.0, 0.0, float(size[0]), float(size[1]))) for name in QUADRANTS]
    assert sorted(adjacent_pairs(everything)) == wanted


def test_the_semantic_patch_by_hand() -> None:
    patch = semantic_patch([(10, 10, 30, 30), (40, 20, 50, 50)], SIZE)
    assert patch is not None
    assert patch.box == (10, 10, 50, 50)  # 1,600 of 10,000 = 0.16 <= 0.4
    assert semantic_patch([(0, 0, 80, 50)], SIZE) is not None  # exactly 0.4
    assert semantic_patch([(0, 0, 81, 50)], SIZE) is None
    assert semantic_patch([], SIZE) is None  # none matched: the whole image, which covers too much


def test_assignment_does_not_depend_on_rounding() -> None:
    # 112 / 2 + 1/3 and its mirror: four equal fractions up to rounding.
    third = 1 / 3
    found = Detection((56 - third, 56 - third, 56 + third, 56 + third))
    assert spatial_patches([found], (112, 112))[0].objects
