"""Importance travels between grids through image coordinates: by area, image by image, and nothing is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmprune import VlmpruneError
from vlmprune.families.idefics3 import tiled_grid
from vlmprune.flow.locate import ImageGrid, ImageSpan, SampleLayout, no_place, plain_grid
from vlmprune.flow.transfer import cell_sizes, onto, transfer


def span(grid: ImageGrid, image: int = 0, start: int = 0) -> ImageSpan:
    return ImageSpan(image, torch.arange(start, start + grid.count), grid.count, grid.grid, grid.xy)


def layout(*grids: ImageGrid) -> SampleLayout:
    spans, start = [], 0
    for i, grid in enumerate(grids):
        spans.append(span(grid, i, start))
        start += grid.count
    return SampleLayout(torch.arange(start), tuple(spans))


def naive(scores: torch.Tensor, h: int, w: int, h2: int, w2: int) -> torch.Tensor:
    """Plain loops over the cells of two regular grids."""
    out = torch.zeros(h2 * w2)
    for r in range(h):
        for c in range(w):
            for r2 in range(h2):
                for c2 in range(w2):
                    down = min((r + 1) / h, (r2 + 1) / h2) - max(r / h, r2 / h2)
                    across = min((c + 1) / w, (c2 + 1) / w2) - max(c / w, c2 / w2)
                    if down > 0 and across > 0:
                        out[r2 * w2 + c2] += scores[r * w + c] * down * across * h * w
    return out


@pytest.mark.parametrize("sizes", [(14, 14, 7, 7), (14, 14, 10, 12), (7, 7, 14, 14), (3, 5, 4, 2), (1, 1, 6, 6)])
def test_regular_grids_equal_plain_loops_and_keep_the_mass(sizes):
    h, w, h2, w2 = sizes
    scores = torch.rand(h * w, generator=torch.Generator().manual_seed(0))
    moved = onto(scores, span(plain_grid(h, w)), span(plain_grid(h2, w2)))
    torch.testing.assert_close(moved, naive(scores, h, w, h2, w2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moved.sum(), scores.sum())


@given(st.tuples(*[st.integers(1, 9)] * 4), st.integers(0, 10_000))
def test_mass_is_conserved_between_any_two_grids(sizes, seed):
    h, w, h2, w2 = sizes
    scores = torch.rand(h * w, generator=torch.Generator().manual_seed(seed))
    moved = onto(scores, span(plain_grid(h, w)), span(plain_grid(h2, w2)))
    assert bool((moved >= 0).all())
    torch.testing.assert_close(moved.sum(), scores.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [(7, 7), (10, 12), (28, 28)])
def test_a_hot_spot_lands_where_it_is(target):
    h, w = target
    scores = torch.full((196,), 0.01)
    scores[3 * 14 + 10] = 5.0  # row 3, column 10 of 14 x 14
    moved = onto(scores, span(plain_grid(14, 14)), span(plain_grid(h, w))).reshape(h, w)
    hottest = int(moved.argmax())
    y, x = (hottest // w + 0.5) / h, (hottest % w + 0.5) / w
    assert abs(y - 3.5 / 14) <= 0.5 / h + 0.5 / 14
    assert abs(x - 10.5 / 14) <= 0.5 / w + 0.5 / 14


def test_tiles_with_a_whole_image_keep_the_mass_and_share_the_hot_spot():
    source, target = plain_grid(14, 14), tiled_grid(4, 2, 3)
    scores = torch.zeros(196)
    scores[0] = 1.0
    moved = onto(scores, span(source), span(target))
    torch.testing.assert_close(moved.sum(), torch.tensor(1.0))
    lit = moved.nonzero()[:, 0].tolist()
    # The first tile's upper left corner, and the upper left token of the whole image that comes last.
    assert lit[0] == 0
    assert lit[-1] == 2 * 3 * 16
    assert all(i < 16 or i >= 96 for i in lit)


Cell = tuple[float, float, float, float]


def tiles_by_hand(side: int, rows: int, columns: int) -> list[Cell]:
    """(left, top, right, bottom) of every token's cell: the tiles in raster order, each in raster order, then the
    whole image on `side` x `side` cells."""
    cells = []
    parts = [(c / columns, r / rows, 1 / columns, 1 / rows) for r in range(rows) for c in range(columns)]
    for left, top, width, height in [*parts, (0.0, 0.0, 1.0, 1.0)]:
        for y in range(side):
            for x in range(side):
                x0, y0 = left + width * x / side, top + height * y / side
                cells.append((x0, y0, x0 + width / side, y0 + height / side))
    return cells


def grid_by_hand(h: int, w: int) -> list[Cell]:
    return [(x / w, y / h, (x + 1) / w, (y + 1) / h) for y in range(h) for x in range(w)]


def spread(scores: torch.Tensor, source: list[Cell], target: list[Cell]) -> torch.Tensor:
    """Each cell's importance lies evenly on its area; a target cell collects what lies on it. In the end the image has
    its sum again."""
    out = torch.zeros(len(target))
    for score, (x0, y0, x1, y1) in zip(scores.tolist(), source, strict=True):
        for i, (u0, v0, u1, v1) in enumerate(target):
            across, down = min(x1, u1) - max(x0, u0), min(y1, v1) - max(y0, v0)
            if across > 0 and down > 0:
                out[i] += score * (across * down) / ((x1 - x0) * (y1 - y0))
    return out * scores.sum() / out.sum()


@pytest.mark.parametrize("to_tiles", [False, True])
def test_cells_of_mixed_size_count_by_what_lies_on_their_area(to_tiles: bool) -> None:
    """Small cells of tiles and large ones of the whole image, over each other: a density, not a sum of tokens."""
    scores = torch.rand(4 * 4 * 7, generator=torch.Generator().manual_seed(0))
    target, cells = plain_grid(5, 7), grid_by_hand(5, 7)
    if to_tiles:
        target, cells = tiled_grid(3, 1, 2), tiles_by_hand(3, 1, 2)
    moved = onto(scores, span(tiled_grid(4, 2, 3)), span(target))
    torch.testing.assert_close(moved, spread(scores, tiles_by_hand(4, 2, 3), cells), rtol=1e-4, atol=1e-5)


def test_a_large_cell_and_a_small_one_by_hand() -> None:
    """Two tiles side by side and the whole image, 2 x 2 cells each. The first tile's first cell is as wide as one of
    four columns and holds 6; the whole image's first cell is as wide as two of them and holds 6, so 3 in each."""
    scores = torch.zeros(12)
    scores[0] = scores[8] = 6.0
    moved = onto(scores, span(tiled_grid(2, 1, 2)), span(plain_grid(1, 4)))
    torch.testing.assert_close(moved, torch.tensor([9.0, 3.0, 0.0, 0.0]))


def test_cells_of_tiles_are_smaller_than_those_of_the_whole_image():
    sizes = cell_sizes(span(tiled_grid(4, 2, 3)))
    torch.testing.assert_close(sizes[0], torch.tensor([1 / 12, 1 / 8]))
    torch.testing.assert_close(sizes[-1], torch.tensor([1 / 4, 1 / 4]))


def test_tokens_without_a_place_get_nothing_from_another_grid_and_all_from_their_own():
    base = plain_grid(2, 2)
    lined = ImageGrid(base.grid, torch.cat([base.xy[:2], no_place(1), base.xy[2:], no_place(1)]))
    scores = torch.tensor([1.0, 2.0, 9.0, 3.0, 4.0, 9.0])
    assert torch.equal(onto(scores, span(lined), span(lined)), scores)
    moved = onto(scores, span(lined), span(plain_grid(1, 1)))
    torch.testing.assert_close(moved, torch.tensor([10.0]))
    back = onto(torch.tensor([8.0]), span(plain_grid(1, 1)), span(lined))
    torch.testing.assert_close(back, torch.tensor([2.0, 2.0, 0.0, 2.0, 2.0, 0.0]))


def test_images_keep_apart_and_must_be_as_many():
    a, b = layout(plain_grid(2, 2), plain_grid(2, 2)), layout(plain_grid(3, 3), plain_grid(1, 2))
    (moved,) = transfer([torch.tensor([1.0, 1, 1, 1, 5, 5, 5, 5])], [a], [b])
    torch.testing.assert_close(moved[:9].sum(), torch.tensor(4.0))
    torch.testing.assert_close(moved[9:], torch.tensor([10.0, 10.0]))
    with pytest.raises(VlmpruneError, match="sees 2 images in sample 0 and the model 1"):
        transfer([torch.ones(8)], [a], [layout(plain_grid(3, 3))])
