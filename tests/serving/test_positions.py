"""Positions of kept tokens in an engine, and the memory they stand in; vLLM is not needed."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmprune.serving.payload import VISUAL
from vlmprune.serving.plugin.positions import SPAN, PositionBuffer, positions_of_kept, with_distances


@dataclass(frozen=True)
class Place:
    """vLLM's `PlaceholderRange`, as far as it is read."""

    offset: int
    length: int
    is_embed: torch.Tensor

    def get_num_embeds(self) -> int:
        return int(self.is_embed.sum())


@dataclass(frozen=True)
class Feature:
    mm_position: Place
    data: Any


def test_two_images_that_share_a_token() -> None:
    """Gemma's tokenizer joins the line breaks behind one image with those before the next."""
    # break, open, 2 of 9, close, BOTH breaks, open, 3 of 9, close, break
    one, two = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1, 0, 0])
    places = [Place(1, 6, one.bool()), Place(6, 7, two.bool())]
    features: Any = [Feature(place, {VISUAL: SimpleNamespace(data=torch.tensor(9))}) for place in places]
    tokens = [*range(100, 114)]
    asked = []

    def unpruned(ids: list[int], whole: list[Any]) -> torch.Tensor:
        asked.append((len(ids), [(one.mm_position.offset, one.mm_position.length) for one in whole]))
        return torch.arange(len(ids)).repeat(3, 1)

    positions, more = positions_of_kept(tokens, features, unpruned)
    assert asked == [(27, [(1, 13), (13, 13)])]
    assert positions[0].tolist() == [0, 1, 2, 3, 3, 12, 13, 14, 15, 15, 15, 24, 25, 26]
    assert more == 27 - 14


def test_a_video_with_text_between_its_frames() -> None:
    """All its tokens become rows; they stand at the first one's position, and bring their distances later."""
    span = [7, 120, 120, 120, 8, 120, 120, 120, 9]
    data = {VISUAL: SimpleNamespace(data=torch.tensor(9)), SPAN: SimpleNamespace(data=torch.tensor(span))}
    features: Any = [Feature(Place(2, 5, torch.ones(5, dtype=torch.bool)), data)]
    asked = []

    def unpruned(ids: list[int], whole: list[Any]) -> torch.Tensor:
        asked.append((ids, whole[0].mm_position.offset, whole[0].mm_position.length))
        return torch.arange(len(ids)).repeat(3, 1)

    positions, more = positions_of_kept([1, 2, 7, 120, 120, 8, 9, 3, 4], features, unpruned)
    assert asked == [([1, 2, *span, 3, 4], 2, 9)]
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 2, 2, 11, 12]
    assert more == 13 - 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("several_axes", [False, True])
def test_distances_travel_with_rows(dtype: torch.dtype, several_axes: bool) -> None:
    """In the columns of a row whose type has 8 bits for digits, up to 65,535."""
    kept = torch.tensor([0, 1, 255, 256, 257, 40_000, 64_999])
    rows = torch.randn(len(kept), 8).to(dtype)
    buffer = PositionBuffer(16, None if several_axes else 10**6)
    visual = torch.zeros(12, dtype=torch.bool)
    visual[[1, 2, 5, 6, 7, 8, 11]] = True
    distances = torch.stack([kept * 0, kept // 260, kept % 260]) if several_axes else kept.expand(3, -1)
    carried = with_distances(rows, distances)
    (left, right) = buffer.take([carried[:3], carried[3:]], visual)
    assert torch.equal(torch.cat([left, right]), rows)
    expected = torch.arange(100, 112).repeat(3, 1)
    expected[:, visual] += distances
    found = buffer.add(torch.arange(100, 112).repeat(3, 1))
    assert torch.equal(found, expected if several_axes else expected[0])


def test_a_step_leaves_nothing_for_the_next() -> None:
    buffer, counted = PositionBuffer(8), torch.arange(8).repeat(3, 1)
    rows = with_distances(torch.zeros(3, 2), torch.full((3, 3), 7))
    buffer.take([rows], torch.tensor([True, False, True, True, False]))
    assert buffer.add(counted)[0].tolist() == [7, 1, 9, 10, 4, 5, 6, 7]
    buffer.take([with_distances(torch.zeros(1, 2))], torch.tensor([True, False]))
    assert torch.equal(buffer.add(counted), counted)
    buffer.take([rows], torch.tensor([True, True, True]))
    buffer.take([], torch.zeros(2, dtype=torch.bool))
    assert torch.equal(buffer.add(counted), counted)


class Allocations(TorchDispatchMode):
    """Storages that operators return and that were not given to any of them."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.new = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):  # type: ignore[no-untyped-def]
        for value in (*given, *(named or {}).values()):
            if isinstance(value, torch.Tensor):
                self.known.add(value.untyped_storage().data_ptr())
        out = function(*given, **(named or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.new += 1
        return out


@pytest.mark.parametrize("longest", [None, 500])
def test_a_forward_allocates_nothing(longest: int | None) -> None:
    """Twenty steps of other lengths write to the same memory, which is what a CUDA graph reads."""
    buffer, counted = PositionBuffer(64, longest), torch.arange(64).repeat(3, 1)
    places = set()
    with Allocations() as seen:
        for step in range(20):
            places.add(buffer.add(counted[:, : 64 - step]).data_ptr())
    assert (seen.new, len(places)) == (0, 1)
    with Allocations() as seen:  # the counter counts
        counted[0].clamp(max=3)
    assert seen.new == 1


def test_positions_end_where_the_table_ends() -> None:
    buffer = PositionBuffer(4, longest=9)
    buffer.take([with_distances(torch.zeros(2, 2), torch.tensor([[0, 300]] * 3))], torch.tensor([True, True]))
    assert buffer.add(torch.arange(6, 10).repeat(3, 1)).tolist() == [6, 9, 8, 9]
