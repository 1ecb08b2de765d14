"""Quest (Tang et al., ICML 2024, arXiv 2406.10774): in each step every head reads the pages that may matter most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...attention.probe import AttentionCall
from ...errors import VlmpruneError
from ...flow.entries import page_index
from ..declared import number
from .base import CacheReader

# Entries in the cache for one that is read, from which on this pays on a CPU: the bounds read all keys, half of what
# attention reads, and gathered entries cost three times what they do in place.
BREAK_EVEN = 6


@dataclass(frozen=True)
class Quest(CacheReader):
    """Nothing leaves the cache; in each step every key head of a layer reads its own pages of neighbouring entries.

    A page is ranked by the most that its keys could give the query: the sum over the head's width of the larger of
    query times lowest and query times highest key. The best `pages` are read, the last one always among them; the first
    `full` layers read everything. So does a step over less than six times as many entries, where it would not pay.

    Departures from the official code: queries that share a key head read the same pages, ranked by the highest of their
    bounds. The lowest and highest keys are computed in each step instead of being kept beside the cache, so that beams
    and later turns need no care: it is the ablation of `delta`, which selects in a few layers for all heads.

    When: to see what pages of one's own give a head over `delta`, which costs less.

    Args:
        pages: how many pages a head reads.
        page: entries of a page.
        full: layers at the start that read everything.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "quest"
    pages: int = field(default=64, metadata=number(int, 3))
    page: int = field(default=16, metadata=number(int, 1))
    full: int = field(default=2, metadata=number(int, 0))

    def selector(self, readers: Sequence[int], depth: int) -> "QuestSelector":
        if self.full >= len(readers):
            raise VlmpruneError(
                f"full={self.full} layers are all {len(readers)} that have a cache that grows; use less, or 'none'."
            )
        return QuestSelector(self, set(list(readers)[self.full :]))


class QuestSelector:
    """A `Quest` in the steps of one call, in these layers: a `StepSelector`."""

    def __init__(self, method: Quest, layers: set[int]) -> None:
        self.method, self.layers = method, layers
        self.attended: dict[int, int] = {}

    def begin(self, stages: Mapping[int, int | None]) -> None:
        """Every layer looks at its own entries, whatever was pruned."""

    def exchange(self, layer: int, call: AttentionCall) -> AttentionCall:
        """The call over the pages of each head, or as it is."""
        method, length = self.method, call.key.shape[2]
        self.attended[layer] = length
        short = length < BREAK_EVEN * method.pages * method.page
        if call.query.shape[2] != 1 or short or layer not in self.layers or not call.narrows(by_head=True):
            return call
        hidden = None
        if not call.sees_all:
            row = torch.zeros(len(call.query), 1, dtype=torch.long, device=call.query.device)
            hidden = ~call.visible(row)[:, :, 0].any(dim=1)
        index = page_index(bounds(call, hidden, method.page), method.page, method.pages, 1, length)
        self.attended[layer] = index.shape[-1]
        return call.of_entries(index)


def bounds(call: AttentionCall, hidden: Tensor | None, page: int) -> Tensor:
    """The most that any key of a page could give the query of a single row, over the queries of a key head: [B, G, N].

    Args:
        hidden: bool [B, T], entries that the row does not see; None where it sees all, whose keys are read in place.
    """
    low, high = (_extremes(call.key, hidden, page, worst) for worst in (float("inf"), float("-inf")))  # [B, G, N, D]
    query = call.query[:, :, 0].float().unflatten(1, (call.key.shape[1], -1))  # [B, G, queries, D]
    empty = low[..., 0] == float("inf")
    low, high = (part.masked_fill(empty[..., None], 0.0) for part in (low, high))
    # The larger of the two products is the one with the highest key where the query is positive, else the other.
    most = query.clamp(min=0) @ high.mT + query.clamp(max=0) @ low.mT
    return most.amax(dim=2).masked_fill(empty, float("-inf"))


def _extremes(key: Tensor, hidden: Tensor | None, page: int, worst: float) -> Tensor:
    """The lowest keys [B, G, N, D] of the pages, or the highest where the worst is -inf, in fp32."""
    if hidden is not None:
        key = key.masked_fill(hidden[:, None, :, None], worst)
    length = key.shape[2]
    whole = length - length % page
    parts = [key[:, :, :whole].unflatten(2, (-1, page)), key[:, :, None, whole:]]
    extreme = torch.amin if worst > 0 else torch.amax
    return torch.cat([extreme(part, dim=3) for part in parts if part.numel()], dim=2).float()
