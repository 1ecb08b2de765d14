"""Compact: a keep mask becomes the gather index of a ragged batch, re-padded left (the gather itself: `ops/gather.py`).

Shapes: B batch, S sequence before, C sequence after (the longest row's kept tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compaction:
    """Which of S positions every row keeps.

    `index` [B, C]: position gathered into each slot; rows with fewer kept tokens start with dropped ones.
    `real` [B, C]: False in those filler slots; nothing may attend to them.
    `ragged`: whether any filler exists (kept as bool so that asking costs no device synchronisation).
    """

    index: Tensor
    real: Tensor
    ragged: bool

    @property
    def columns(self) -> Tensor:
        """`index` with -1 in the filler slots."""
        return self.index.masked_fill(~self.real, -1)

    def to(self, device: torch.device) -> "Compaction":
        return Compaction(self.index.to(device), self.real.to(device), self.ragged)


def keep_mask(eligible: Tensor, slots: Sequence[Tensor], kept: Sequence[Tensor]) -> Tensor:
    """Which of S positions stay: the eligible ones [B, S] less the visual tokens, per sample at `slots` [V], that are
    not among the `kept` [K], indices into these."""
    keep = eligible.clone()
    for row, where, chosen in zip(keep, slots, kept, strict=True):
        where = where.to(row.device)
        row[where] = False
        row[where[chosen.to(row.device)]] = True
    return keep


def compaction(keep: Tensor) -> Compaction:
    """From a keep mask [B, S] to a gather index; on a GPU the host waits for the length of the longest row."""
    counts = keep.sum(dim=1)
    lengths = counts.tolist()
    longest = max(lengths)
    # A stable sort of False < True puts the kept positions last, each part in its original order: rows stay
    # left-padded, so that `logits[:, -1]` is still the last prompt token.
    index = torch.sort(keep.int(), dim=1, stable=True).indices[:, -longest:]
    return Compaction(index, torch.gather(keep, 1, index), min(lengths) != longest)
