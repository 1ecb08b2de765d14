"""A pruner that keeps what a test tells it to, and the plans tests use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.reference import visual_slots
from vlmprune.flow.select import Selection
from vlmprune.methods.base import Pruner, PruningContext

Plan = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Planted(Pruner):
    """Keeps `plan[i]` of prompt i's visual tokens. Beams of a prompt stand side by side and share its plan."""

    name: ClassVar[str] = "planted"
    plan: Plan = ()

    def select(self, prompt: PruningContext) -> Selection:
        beams = len(prompt.layouts) // len(self.plan)
        return Selection([torch.tensor(self.plan[i // beams]) for i in range(len(prompt.layouts))])


def counts(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[int]:
    """V of every sample."""
    return [len(slots) for slots in visual_slots(model, inputs)]


def equal_plan(visual: list[int], keep: int = 4, seed: int = 0) -> Plan:
    """The same number of tokens everywhere, at places that differ between samples."""
    return _draw(visual, [keep] * len(visual), seed)


def ragged_plan(visual: list[int], seed: int = 0) -> Plan:
    """One token, about half, all but one, and so on round the batch."""
    kinds = [1, None, -1]
    sizes = [kinds[i % 3] for i in range(len(visual))]
    return _draw(visual, [v // 2 + 1 if n is None else n % v for v, n in zip(visual, sizes, strict=True)], seed)


def _draw(visual: list[int], sizes: list[int], seed: int) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        tuple(sorted(torch.randperm(v, generator=generator)[:size].tolist()))
        for v, size in zip(visual, sizes, strict=True)
    )
