"""The rows of the cache's study: every cache method, chance, even spacing, and pruning at as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import vlmprune
from vlmprune.flow.select import count_for, evenly

KEEPS = (0.25, 0.1, 0.05)
FULL, RANDOM = "full", "random per layer"
WINDOW, POOL = 8, 3  # of SnapKV: prompts have six tokens of text
PAGE = 4  # entries; a cache has some 250


@dataclass(frozen=True)
class EvenKV(vlmprune.CacheCut):
    """Keeps evenly spaced eligible entries, the same in every layer and head."""

    reads_attention = False

    def score(self, entries: vlmprune.LayerEntries) -> torch.Tensor:
        eligible = entries.visual if self.tokens == "visual" else entries.real
        scores = torch.zeros(eligible.shape)
        for own, row in zip(scores, eligible.cpu(), strict=True):
            places, keep = row.nonzero()[:, 0], count_for(self.keep, int(row.sum()))
            own[places[evenly(keep, len(places))]] = 1.0
        return scores[:, None].to(eligible.device)


@dataclass(frozen=True)
class Size:
    """Of a prompt: images, visual tokens of each that may be kept, and tokens of text."""

    images: int
    visual: int
    text: int

    def left(self, keep: float) -> int:
        """Entries that a budget leaves."""
        return self.images * count_for(keep, self.visual) + self.text


@dataclass(frozen=True)
class KVRow:
    """A way to answer: its method for a budget and a prompt.

    `prunes`: it drops tokens before the first layer, which leaves as many bytes of the cache. `reads`: it cuts nothing
    and reads a part in each step.
    """

    name: str
    make: Callable[[float, Size], Any]
    prunes: bool = False
    reads: bool = False


def _pruner(name: str) -> Callable[[float, Size], Any]:
    def make(keep: float, size: Size) -> Any:
        method: Any = vlmprune.list_methods()[name]
        return method(keep=count_for(keep, size.visual), layer=0)

    return make


def _read(keep: float, size: Size) -> dict[str, Any]:
    """As many entries as a cut of this budget would leave, in whole pages, the text among the last ones."""
    return {"pages": max(3, round(size.left(keep) / PAGE)), "page": PAGE}


ROWS = (
    KVRow(RANDOM, lambda keep, size: vlmprune.RandomKV(keep)),
    KVRow("uniform", lambda keep, size: EvenKV(keep)),
    KVRow("sliding window + sinks", lambda keep, size: vlmprune.WindowKV(keep)),
    KVRow(
        "sliding window + sinks, of all tokens",
        lambda keep, size: vlmprune.WindowKV(size.left(keep), "all"),
    ),
    KVRow("snapkv", lambda keep, size: vlmprune.SnapKV(keep, window=WINDOW, pool=POOL)),
    KVRow("pyramidkv", lambda keep, size: vlmprune.PyramidKV(keep, window=WINDOW, pool=POOL)),
    KVRow("adakv", lambda keep, size: vlmprune.AdaKV(keep, window=WINDOW, pool=POOL)),
    KVRow("task-kv", lambda keep, size: vlmprune.TaskKV(keep, window=WINDOW, recent=4)),
    KVRow("vl-cache", lambda keep, size: vlmprune.VLCache(keep)),
    KVRow("vl-cache, TGV-KV's budgets", lambda keep, size: vlmprune.VLCache(keep, budgets="attention")),
    KVRow("vl-cache, PrefixKV's budgets", lambda keep, size: vlmprune.VLCache(keep, budgets="prefix")),
    KVRow("pruned, random", _pruner("random"), prunes=True),
    KVRow("pruned, uniform", _pruner("uniform"), prunes=True),
    KVRow(
        "delta, 3 of 6 layers read a part",
        lambda keep, size: vlmprune.Delta(**_read(keep, size), recent=2, full=1, selecting=[1, 3]),
        reads=True,
    ),
    KVRow(
        "quest, 5 of 6 layers read a part", lambda keep, size: vlmprune.Quest(**_read(keep, size), full=1), reads=True
    ),
)


def listed(names: Sequence[str] | None = None) -> list[tuple[KVRow | None, float | None]]:
    """Every row at every budget, the full cache first."""
    rows = [row for row in ROWS if names is None or row.name in names]
    return [(None, None), *((row, keep) for keep in KEEPS for row in rows)]


def label(row: KVRow | None, keep: float | None) -> str:
    """A row's name in records."""
    return FULL if row is None else f"{row.name} {keep:g}"
