"""AdaKV (Feng et al., NeurIPS 2025, arXiv 2407.11550): heads whose attention is spread keep more of the cache."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..declared import number
from .snapkv import SnapKV


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV whose budget is shared by the heads of a layer: the entries of any head that score highest stay.

    Every head keeps at least `safeguard` of the mean. Heads are stored in two groups, each as long as its longest head
    in any sample of the batch. The others have filler, which no token attends to but which the report's bytes count: so
    they are more than `keep` says, the more so the larger the batch.

    Departures from the official code: those of `snapkv`; it lays all heads end to end for its own kernel.

    When: as `snapkv`, where some heads look at one thing and others at everything.

    Args:
        safeguard: the part of the mean that every head keeps.
    """

    name: ClassVar[str] = "adakv"
    by_head: ClassVar[bool] = True
    safeguard: float = field(default=0.2, metadata=number(float, 0, 1))

    def by_heads(self, scores: Tensor, weights: Tensor | None, count: int, place: int, places: int) -> list[int]:
        heads, entries = scores.shape
        least = min(entries, max(1, int(self.safeguard * count)))
        ranked = scores.sort(dim=1, descending=True, stable=True).values[:, least:]
        taken = torch.sort(ranked.flatten(), descending=True, stable=True).indices[: heads * (count - least)]
        more = torch.bincount(taken // max(1, ranked.shape[1]), minlength=heads)
        return [least + int(n) for n in more]
