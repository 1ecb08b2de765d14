"""Compaction: gather the kept rows of a prompt, re-padded left, in one launch.

Shapes: B batch, S sequence before, C sequence after, A axes of positions, D width.
"""

import torch
from torch import Tensor

from .dispatch import runs_triton


def gather_rows(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of [..., B or 1, S, D] at `index` [B, C]: [..., B, C, D]."""
    batch, length = index.shape
    shape = (*tensor.shape[:-3], batch, length, tensor.shape[-1])
    index = index.to(tensor.device).view(*(1,) * (tensor.dim() - 3), batch, length, 1).expand(shape)
    return torch.gather(tensor.expand(*shape[:-2], *tensor.shape[-2:]), -2, index)


def gather_positions(tensor: Tensor, index: Tensor) -> Tensor:
    """Entries of [..., B or 1, S] at `index` [B, C]: [..., B, C]."""
    return gather_rows(tensor.unsqueeze(-1), index).squeeze(-1)


def compact(
    hidden: Tensor,
    index: Tensor,
    *,
    inner: Tensor | None = None,
    cos_sin: tuple[Tensor, ...] = (),
    position_ids: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """Gather the kept rows of all inputs of a decoder layer, for a ragged batch.

    Args:
        hidden: [B, S', D]. index: [B, C] in 0..S-1; in the filler slots of shorter rows any row.
        inner: [B, C] in 0..S'-1, the same rows as `hidden` has them, where it was compacted before; else `index`.
        cos_sin: of the rotary embedding, [..., B or 1, S, Dr] each. position_ids: [..., B or 1, S].
    Returns:
        [B, C, D], [..., B, C, Dr] each, and [..., B, C].
    """
    inner = index if inner is None else inner
    given = [hidden, *cos_sin, index, inner, *([] if position_ids is None else [position_ids])]
    if len(cos_sin) in (0, 2) and runs_triton(*given):
        from .gather_triton import compact as launch

        return launch(hidden, index, inner, cos_sin, position_ids)
    return (
        gather_rows(hidden, inner.to(hidden.device)),
        tuple(gather_rows(part, index) for part in cos_sin),
        None if position_ids is None else gather_positions(position_ids, index),
    )
