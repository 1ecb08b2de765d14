"""Columns hidden in the masks that a model made. Shapes: B batch, S sequence of the prompt."""

from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError


def without(mask: Any, dropped: Tensor, rows: int, total: int) -> Tensor:
    """A layer's mask of `rows` rows, over the last columns of the `total` so far, without the columns `dropped` [B, S];
    dropped rows see themselves.

    Raises:
        VlmpruneError: a mask of a kind that columns cannot be hidden in here.
    """
    device = mask.device if isinstance(mask, Tensor) else dropped.device
    if mask is None:
        at = torch.arange(total, device=device)
        mask = (at <= at[total - rows :, None])[None, None]
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise VlmpruneError(
            f"A layer's mask is a {type(mask).__name__}, in which columns cannot be hidden for comparison; load the "
            "model with attn_implementation='sdpa' or 'eager' for the check."
        )
    columns = mask.shape[-1]
    offset = max(0, total - columns)  # a window has let go what is before it
    gone = torch.zeros(len(dropped), max(total, columns), dtype=torch.bool, device=device)
    gone[:, : dropped.shape[1]] = dropped.to(device)
    at = torch.arange(offset, offset + columns, device=device)
    own = torch.arange(total - rows, total, device=device)[:, None] == at
    hidden = gone[:, None, None, offset : offset + columns] & ~own
    mask = mask.expand(len(dropped), -1, -1, -1)
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def visible_columns(mask: Tensor) -> Tensor:
    """A 4-D mask, boolean or additive, as what may be seen."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
