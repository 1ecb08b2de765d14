"""What a method would keep at every budget, decided from what it saw in one run: the keep slider asks no model.

Shapes: V visual tokens of an image.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...flow.locate import ImageSpan
from ...flow.select import Selection
from ...methods.base import Pruner, PruningContext

COARSE = [round(0.05 * i, 2) for i in range(1, 21)]
FINE = [round(0.01 * i, 2) for i in range(2, 101)]  # the slider's steps
QUICK = 0.1  # seconds for the coarse ones, up to which the fine ones are worked out too


@contextmanager
def watched(pruner: Any) -> Iterator[list[PruningContext]]:
    """Within the block, collect what this pruner is shown when it chooses; nothing of methods that choose otherwise."""
    seen: list[PruningContext] = []
    if not isinstance(pruner, Pruner):
        yield seen
        return
    select = pruner.select

    def look(prompt: PruningContext) -> Selection:
        seen.append(prompt)
        return select(prompt)

    pruner.__dict__["select"] = look  # on the instance, which is a frozen dataclass
    try:
        yield seen
    finally:
        del pruner.__dict__["select"]


@torch.no_grad()
def kept_at(pruner: Any, seen: list[PruningContext], span: ImageSpan) -> dict[float, Tensor]:
    """By budget: which tokens of the image stay, bool [V]; {} where one look does not tell, as in several stages."""
    if len(seen) != 1 or seen[0].stages != 1:
        return {}
    start = time.perf_counter()
    made = {}
    for keep in [*COARSE, *FINE]:
        if keep == FINE[0] and time.perf_counter() - start > QUICK:
            break
        made[keep] = replace(pruner, keep=keep).select(seen[0]).kept[0].cpu()
    return {keep: torch.isin(span.positions, made[keep]) for keep in sorted(made)}
