"""StreamingLLM's window and sinks (Xiao et al., ICLR 2024, arXiv 2309.17453)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..declared import number
from .base import CacheCut, LayerEntries


@dataclass(frozen=True)
class WindowKV(CacheCut):
    """Keeps the first `sinks` eligible entries of the cache and the last ones, whatever they hold.

    Departures from the official code: it cuts once, after the prompt, and keeps positions as they are.

    When: in comparisons: it knows neither image nor question.

    Args:
        sinks: entries at the start that stay.
    """

    name: ClassVar[str] = "kv-window"
    reads_attention: ClassVar[bool] = False
    sinks: int = field(default=4, metadata=number(int, 0))

    def score(self, entries: LayerEntries) -> Tensor:
        eligible = entries.visual if self.tokens == "visual" else entries.real
        recent = torch.arange(eligible.shape[-1], device=eligible.device).float()
        first = eligible & (eligible.cumsum(dim=-1) <= self.sinks)
        return torch.where(first, 2.0 * eligible.shape[-1] - recent, recent)[:, None]
