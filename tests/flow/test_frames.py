"""A video's tokens in three dimensions: evenly chosen, pooled, and importance that travels through time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlmprune.errors import VlmpruneError
from vlmprune.flow.frames import by_frame, counts_for, joined
from vlmprune.flow.locate import ImageGrid, ImageSpan, SampleLayout, dealt, in_text_order, plain_grid, video_grid
from vlmprune.flow.score import lattice_cells
from vlmprune.flow.select import coarser_grid, coarser_video, evenly_in_video
from vlmprune.flow.transfer import onto
from vlmprune.methods.downsample import pool


def span(grid: ImageGrid) -> ImageSpan:
    return dealt(torch.arange(grid.count), [grid]).images[0]


sizes = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 8))


@given(sizes, st.floats(0.01, 1.0), st.integers(0, 2))
def test_evenly_in_a_video(size, share, behind):
    grid = video_grid(*size, behind=behind)
    count = max(1, int(share * grid.count))
    kept = evenly_in_video(span(grid), count)
    assert len(kept.unique()) == len(kept) == count
    assert torch.equal(kept, kept.sort().values)
    each = torch.bincount(grid.frame[kept].clamp(min=0), minlength=size[0])[: size[0]]
    if count <= grid.count - behind:  # tokens of no frame come last
        assert int(each.max() - each.min()) <= 1
        assert bool((grid.frame[kept] >= 0).all())


@pytest.mark.parametrize("keep", [1 / 14, 1 / 28, 1 / 7, 0.1, 0.25, 0.5, 13 / 196, 1 / 196, 0.02])
def test_no_column_stands_out(keep):
    """Every 14th of 14 columns would be the same column of every frame; every part of frame and time has its share."""
    t, h, w = 16, 14, 14
    grid = video_grid(t, h, w)
    count = int(keep * grid.count)
    kept = evenly_in_video(span(grid), count)
    places = torch.stack(torch.unravel_index(kept, (t, h, w)))
    for axis, size in enumerate((t, h, w)):
        each = torch.bincount(places[axis], minlength=size)
        assert float(each.max()) <= 1.3 * count / size + 2
        assert float(each.min()) >= 0.6 * count / size - 2
    eighths = places[0] * 2 // t * 4 + places[1] * 2 // h * 2 + places[2] * 2 // w
    assert torch.bincount(eighths, minlength=8).float().sub(count / 8).abs().max() <= 2 + 0.02 * count


def test_few_tokens_of_many_frames_are_evenly_spaced_in_time():
    grid = video_grid(32, 4, 4)
    assert grid.frame[evenly_in_video(span(grid), 4)].tolist() == [4, 12, 20, 28]


@given(sizes, st.integers(1, 400))
def test_a_coarser_video(size, count):
    t, h, w = coarser_video(*size, count)
    assert 1 <= t <= size[0]
    assert 1 <= h <= size[1]
    assert 1 <= w <= size[2]
    assert t * h * w <= max(count, 1)
    if size[0] == 1:  # as of an image
        assert (h, w) == coarser_grid(*size[1:], count)


def test_downsampling_spends_the_budget_of_a_long_video():
    """128 frames of 14 x 14 at a tenth: not one frame's 196 cells, and every frame alike."""
    t, h, w = coarser_video(128, 14, 14, 2509)
    assert t * h * w > 2300
    assert 1.5**-1 < (t / 128) / ((h * w) ** 0.5 / 14) < 1.5


def test_pooling_is_the_mean_of_each_cell_in_space_and_time():
    """4 frames of 4 x 6 and a newline at an eighth are 2 x 2 x 3 cells of 2 x 2 x 2; the twin is a loop."""
    grid = video_grid(4, 4, 6, behind=1)
    hidden = torch.randn(grid.count, 5, generator=torch.Generator().manual_seed(0))
    kept, means = pool(hidden, span(grid), 12)
    assert coarser_video(4, 4, 6, 12) == (2, 2, 3)
    assert len(kept) == 12
    volume = hidden[:96].view(4, 4, 6, 5)
    for token, mean in zip(kept.tolist(), means, strict=True):
        a, b, c = token // 24 // 2 * 2, token % 24 // 6 // 2 * 2, token % 6 // 2 * 2
        torch.testing.assert_close(mean, volume[a : a + 2, b : b + 2, c : c + 2].reshape(-1, 5).mean(dim=0))
    assert lattice_cells(span(grid), 2, 2, 3)[-1] == -1


# --- importance ------------------------------------------------------------------------------------------------------


def cells(t: int, h: int, w: int, edges: list[float]) -> list[tuple[float, ...]]:
    """(begin, end, top, bottom, left, right) of every token."""
    return [
        (edges[f], edges[f + 1], y / h, (y + 1) / h, x / w, (x + 1) / w)
        for f in range(t) for y in range(h) for x in range(w)
    ]  # fmt: skip


def spread(scores: torch.Tensor, source: list[tuple[float, ...]], target: list[tuple[float, ...]]) -> torch.Tensor:
    """Each cell's importance lies evenly in its volume; a target cell collects what lies in it. Plain loops."""
    out = torch.zeros(len(target))
    for score, one in zip(scores.tolist(), source, strict=True):
        volume = (one[1] - one[0]) * (one[3] - one[2]) * (one[5] - one[4])
        for i, other in enumerate(target):
            shared = 1.0
            for axis in (0, 2, 4):
                shared *= max(0.0, min(one[axis + 1], other[axis + 1]) - max(one[axis], other[axis]))
            out[i] += score * shared / volume
    return out


@pytest.mark.parametrize("frames", [(2, 4), (4, 2), (3, 5), (1, 4), (4, 1), (3, 3)])
def test_importance_travels_through_time_and_frame(frames):
    """A guide sees fewer and smaller frames: frame 0 of 2 is not spread over all of 4."""
    t, t2 = frames
    source, target = video_grid(t, 3, 3), video_grid(t2, 2, 4, behind=1)
    scores = torch.rand(source.count, generator=torch.Generator().manual_seed(0))
    moved = onto(scores, span(source), span(target))
    ours = cells(t2, 2, 4, [f / t2 for f in range(t2 + 1)])
    expected = spread(scores, cells(t, 3, 3, [f / t for f in range(t + 1)]), ours)
    torch.testing.assert_close(moved[:-1], expected, rtol=1e-4, atol=1e-5)
    assert moved[-1] == 0
    torch.testing.assert_close(moved.sum(), scores.sum())


def test_seconds_place_frames_where_both_know_them():
    """Frames at 0, 8 s and at 0, 1, 2, 8 s: the guide's first ends at 4 s, by which the model has shown three."""
    source, target = video_grid(2, 1, 1, seconds=[0, 8]), video_grid(4, 1, 1, seconds=[0, 1, 2, 8])
    moved = onto(torch.tensor([1.0, 0.0]), span(source), span(target))
    edges = [-4.0, 0.5, 1.5, 5.0, 12.0]  # the first and last frame reach as far as the guide's
    expected = spread(torch.tensor([1.0, 0.0]), cells(2, 1, 1, [-4.0, 4.0, 12.0]), cells(4, 1, 1, edges))
    torch.testing.assert_close(moved, expected)
    moved = onto(torch.tensor([1.0, 0.0]), span(source), span(video_grid(4, 1, 1)))
    torch.testing.assert_close(moved, torch.tensor([0.5, 0.5, 0.0, 0.0]))


def test_equal_videos_pass_importance_as_it_is_and_long_ones_take_no_square_of_their_tokens():
    one = video_grid(3, 2, 2, behind=1)
    scores = torch.rand(13)
    assert torch.equal(onto(scores, span(one), span(one)), scores)
    long, guide = video_grid(128, 14, 14), video_grid(32, 9, 9)
    moved = onto(torch.rand(guide.count), span(guide), span(long))  # 25,088 x 2,592 overlaps would be 260 MB
    assert len(moved) == 25088


# --- spans -----------------------------------------------------------------------------------------------------------


def test_images_and_videos_are_dealt_in_the_order_of_the_text():
    """The frames of a video need not touch, as Qwen3-VL writes the time between them."""
    kinds = torch.tensor([0, 2, 2, 0, 2, 2, 0, 1, 1, 1, 1, 0, 2, 0])
    layout = in_text_order(kinds, [plain_grid(2, 2)], [video_grid(2, 1, 2), video_grid(1, 1, 1)])
    assert [(one.kind, one.grid, one.positions.tolist()) for one in layout.images] == [
        ("video", (2, 1, 2), [0, 1, 2, 3]), ("image", (1, 2, 2), [4, 5, 6, 7]), ("video", (1, 1, 1), [8]),
    ]  # fmt: skip
    assert layout.slots.tolist() == [1, 2, 4, 5, 7, 8, 9, 10, 12]
    with pytest.raises(VlmpruneError, match="video of 4 tokens is mixed with tokens of another kind"):
        in_text_order(torch.tensor([2, 2, 1, 2, 2]), [plain_grid(1, 1)], [video_grid(2, 1, 2)])


def test_a_budget_over_frames():
    layout = SampleLayout(torch.arange(17), (span(video_grid(4, 2, 2, behind=1)),))
    parts = by_frame(layout).images
    assert [part.positions.tolist() for part in parts] == [[4 * f, 4 * f + 1, 4 * f + 2, 4 * f + 3] for f in range(4)]
    for keep, wanted in ((0.5, [2] * 4), (0.1, [1] * 4), (9, [2] * 4), (3, [1, 0, 1, 1]), (400, [4] * 4)):
        found = counts_for(keep, parts)
        assert found == wanted or (keep == 3 and sorted(found) == [0, 1, 1, 1])
    assert counts_for(9, layout.images) == [9]


def test_frames_that_came_as_images():
    images = dealt(torch.arange(20), [plain_grid(2, 2)] * 5)
    (found,) = joined([images], [[0, [0.0, 2.0, 4.0], 1]])
    assert [(one.image, one.kind, one.grid, one.seconds) for one in found.images] == [
        (0, "image", (1, 2, 2), None), (1, "video", (3, 2, 2), (0.0, 2.0, 4.0)), (2, "video", (1, 2, 2), None),
    ]  # fmt: skip
    assert found.images[1].positions.tolist() == list(range(4, 16))
    assert found.images[1].frame.tolist() == [0] * 4 + [1] * 4 + [2] * 4
