"""Compaction against plain loops, with fillers that nothing may read."""

from __future__ import annotations

import torch

from vlmprune.flow.compact import compaction, keep_mask
from vlmprune.ops.gather import gather_positions, gather_rows

KEEP = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 0]]).bool()


def kept_positions(row: int) -> list[int]:
    return [i for i in range(KEEP.shape[1]) if KEEP[row, i]]


def test_rows_keep_their_order_and_are_padded_left() -> None:
    chosen = compaction(KEEP)
    assert chosen.index.shape == (3, 5)
    assert chosen.ragged
    for row in range(3):
        kept = kept_positions(row)
        assert chosen.index[row, 5 - len(kept) :].tolist() == kept
        assert chosen.real[row].tolist() == [False] * (5 - len(kept)) + [True] * len(kept)


def test_equal_rows_are_not_ragged() -> None:
    assert not compaction(KEEP[:1].repeat(3, 1)).ragged


def test_tensors_of_every_layout_are_gathered() -> None:
    chosen = compaction(KEEP)
    hidden = torch.randn(3, 6, 4)
    cos = torch.randn(1, 6, 4)  # one row for the whole batch, as rotary embeddings come
    axes = torch.randn(3, 3, 6, 4)  # M-RoPE: axes first
    ids = torch.arange(6)[None] + 100
    for row in range(3):
        for slot in range(5):
            at = int(chosen.index[row, slot])
            assert torch.equal(gather_rows(hidden, chosen.index)[row, slot], hidden[row, at])
            assert torch.equal(gather_rows(cos, chosen.index)[row, slot], cos[0, at])
            assert torch.equal(gather_rows(axes, chosen.index)[:, row, slot], axes[:, row, at])
            assert int(gather_positions(ids, chosen.index)[row, slot]) == 100 + at


def test_only_visual_tokens_that_were_not_kept_and_ineligible_positions_go() -> None:
    eligible = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    slots, kept = [torch.tensor([2, 3, 5]), torch.tensor([0, 4])], [torch.tensor([1]), torch.tensor([0, 1])]
    got = keep_mask(eligible, slots, kept)
    for row in range(2):
        for position in range(6):
            visual = position in slots[row].tolist()
            wanted = position in slots[row][kept[row]].tolist() if visual else bool(eligible[row, position])
            assert bool(got[row, position]) == wanted


def test_fillers_have_no_column() -> None:
    chosen = compaction(KEEP)
    for row in range(3):
        for slot in range(5):
            wanted = int(chosen.index[row, slot]) if chosen.real[row, slot] else -1
            assert int(chosen.columns[row, slot]) == wanted
