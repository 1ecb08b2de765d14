"""SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469): every head keeps what the end of the prompt attends to."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ...errors import VlmpruneError
from ..declared import number
from .base import CacheCut, LayerEntries


@dataclass(frozen=True)
class SnapKV(CacheCut):
    """Every key head keeps the entries of the cache that the last `window` rows of the prompt attend to most, as many
    in each head.

    The attention of these rows is averaged, smoothed over `pool` neighbouring entries, and averaged over the queries of
    a key head. The window's own entries come first, the last of them foremost. `keep`, `tokens`, `budgets` and `buffer`
    are those of all cuts: see `CacheCut`.

    Departures from the official code: it keeps a copy of the cache for each query head, which with grouped queries may
    need more than no cut; here a key head has one set. It cuts all tokens: `tokens="all"`; by default text stays and
    only visual tokens are ranked. Padding takes no part. Its pooling may be by the maximum too.

    When: long answers, or several questions about one long prompt, and heads that look at different things. Compare it
    with `kv-random`.

    Args:
        window: rows at the end of the prompt that vote.
        pool: entries that are averaged, an odd number; 1 for none.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "snapkv"
    window: int = field(default=32, metadata=number(int, 1))
    pool: int = field(default=5, metadata=number(int, 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pool(self.pool)

    def score(self, entries: LayerEntries) -> Tensor:
        inside = entries.last(self.window)
        before = entries.attention_from(inside).masked_fill((inside | ~entries.real)[:, None], 0.0)
        smooth = smoothed(before, self.pool)
        # A mean of attention is at most 1.
        recent = 2.0 + torch.arange(inside.shape[-1], device=smooth.device)
        return torch.where(inside[:, None], recent, smooth)


def check_pool(pool: int) -> None:
    """Raise `VlmpruneError` unless that many neighbouring entries have a middle."""
    if pool % 2 == 0:
        raise VlmpruneError(f"pool must be an odd int, so that it is centred, got {pool!r}; use 5 or 7.")


def smoothed(votes: Tensor, pool: int) -> Tensor:
    """Votes [B, G, P] averaged over `pool` neighbouring entries, 0 beyond the ends."""
    return avg_pool1d(votes, pool, stride=1, padding=pool // 2)
