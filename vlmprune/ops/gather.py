"""Compaction: gather the kept rows of a prompt, re-padded left, in one launch.

Shapes: B batch, S sequence before, C sequence after, A axes of positions, D width.
"""

from typing import Any

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


def gather_entries(states: Tensor, index: Tensor) -> Tensor:
    """Entries of keys or values [B, G, P, D] at `index` [B, C], or [B, G, C] of each head its own: [B, G, C, D]."""
    index = index[:, None] if index.dim() == 2 else index
    batch, heads = (torch.arange(size, device=states.device) for size in states.shape[:2])
    # An index copies whole entries, at a third of the time of torch.gather, which copies numbers.
    return states[batch[:, None, None], heads[:, None], index]


def gather_along(value: Any, index: Tensor, batch: int, length: int) -> Any:
    """What holds something for each token of [batch, length], at `index` [B, C]; anything else as it is.

    The axis of the sequence is the first of `length` entries behind one of 1 or `batch`; tuples, lists and dicts are
    gone through.
    """
    if isinstance(value, tuple | list):
        return type(value)(gather_along(one, index, batch, length) for one in value)
    if isinstance(value, dict):
        return {name: gather_along(one, index, batch, length) for name, one in value.items()}
    if not isinstance(value, Tensor):
        return value
    shape, axis = value.shape, sequence_axis(value, batch, length)
    if axis is None:
        return value
    value = value.expand(*shape[: axis - 1], batch, *shape[axis:])
    at = index.to(value.device).view(*(1,) * (axis - 1), *index.shape, *(1,) * (value.dim() - axis - 1))
    return torch.gather(value, axis, at.expand(*shape[: axis - 1], *index.shape, *shape[axis + 1 :]))


def sequence_axis(tensor: Tensor, batch: int, length: int) -> int | None:
    """The first axis of `length` entries behind one of 1 or `batch`."""
    shape = tensor.shape
    return next((a for a in range(1, tensor.dim()) if shape[a] == length and shape[a - 1] in (1, batch)), None)


def one_stream(hidden: Tensor, batch: int, length: int) -> Tensor:
    """[B, S, D]: the first of the streams that a model keeps of every token, [N, B, S, D] or [B, S, N, D]."""
    if hidden.dim() == 3:
        return hidden
    axis = sequence_axis(hidden, batch, length)
    assert axis is not None, "hidden states have a row for every token"
    while axis > 1:
        hidden, axis = hidden[0], axis - 1
    while hidden.dim() > 3:
        hidden = hidden[:, :, 0]
    return hidden


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
