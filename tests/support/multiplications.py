"""All multiplications of a language model's prompt of one token, as PyTorch counts them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def of_one_token(text: Any) -> dict[str, dict[Any, int]]:
    """By the name of each module, in FLOPs; experts in the form that the counter sees."""
    if hasattr(text, "set_experts_implementation"):
        text.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        text(torch.tensor([[20]]), use_cache=False)
    return counter.get_flop_counts()
