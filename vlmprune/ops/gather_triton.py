"""Triton kernels behind `gather.py`. Addresses are 64-bit: B * S * D passes 2^31 at batch 8, 64k tokens, D 4,096."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_ROW = 4096  # elements of a hidden state per program


@triton.jit
def compact_kernel(
    hidden, cos, sin, position_ids, inner, index, out_hidden, out_cos, out_sin, out_position_ids,
    C, D, DR,
    hidden_b, hidden_s, hidden_d,
    cos_a, cos_b, cos_s, cos_d,
    sin_a, sin_b, sin_s, sin_d,
    position_ids_a, position_ids_b, position_ids_s,
    index_b, inner_b,
    slots,
    ROTARY_AXES: tl.constexpr, POSITION_AXES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Program (slot of the batch, part): a part of the hidden state, or, as the last part, all small tensors."""
    slot = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    b, c = slot // C, slot % C
    if part < tl.num_programs(1) - 1:
        row = tl.load(inner + b * inner_b + c)
        d = part * BLOCK + tl.arange(0, BLOCK)
        states = tl.load(hidden + b * hidden_b + row * hidden_s + d.to(tl.int64) * hidden_d, mask=d < D)
        tl.store(out_hidden + slot * D + d, states, mask=d < D)
    else:
        row = tl.load(index + b * index_b + c)
        r = tl.arange(0, BLOCK_R)
        for a in tl.static_range(ROTARY_AXES):
            to = (a * slots + slot) * DR + r
            entry = tl.load(cos + a * cos_a + b * cos_b + row * cos_s + r * cos_d, mask=r < DR)
            tl.store(out_cos + to, entry, mask=r < DR)
            entry = tl.load(sin + a * sin_a + b * sin_b + row * sin_s + r * sin_d, mask=r < DR)
            tl.store(out_sin + to, entry, mask=r < DR)
        for a in tl.static_range(POSITION_AXES):
            position = tl.load(position_ids + a * position_ids_a + b * position_ids_b + row * position_ids_s)
            tl.store(out_position_ids + a * slots + slot, position)


def rows_of(index: Tensor) -> Tensor:
    """The kernels take the stride between rows of a [B, C] index; within a row it must be 1."""
    return index if index.stride(1) == 1 else index.contiguous()


def broadcast(tensor: Tensor, batch: int, last: int) -> Tensor:
    """[..., B or 1, S] and `last` further dimensions as [A, B, S, ...], without a copy where strides allow it."""
    tensor = tensor.reshape(-1, *tensor.shape[-2 - last :])
    return tensor.expand(-1, batch, *tensor.shape[2:])


def compact(
    hidden: Tensor,
    index: Tensor,
    inner: Tensor,
    cos_sin: tuple[Tensor, ...],
    position_ids: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
    """See `gather.compact`."""
    batch, slots = index.shape
    width = hidden.shape[-1]
    index, inner = rows_of(index), rows_of(inner)
    out = hidden.new_empty(batch, slots, width)
    # A missing input is replaced by a tensor that is never read.
    cos, sin = (broadcast(part, batch, 1) for part in cos_sin or (hidden, hidden))
    out_cos, out_sin = cos, sin
    if cos_sin:
        out_cos, out_sin = (part.new_empty(len(part), batch, slots, part.shape[-1]) for part in (cos, sin))
    ids = index[None] if position_ids is None else broadcast(position_ids, batch, 0)
    out_ids = ids if position_ids is None else ids.new_empty(len(ids), batch, slots)
    block = min(triton.next_power_of_2(width), LARGEST_ROW)
    with torch.cuda.device_of(hidden):
        compact_kernel[(batch * slots, triton.cdiv(width, block) + 1)](
            hidden, cos, sin, ids, inner, index, out, out_cos, out_sin, out_ids,
            slots, width, cos.shape[-1],
            *hidden.stride(), *cos.stride(), *sin.stride(), *ids.stride(),
            index.stride(0), inner.stride(0),
            batch * slots,
            ROTARY_AXES=len(cos) if cos_sin else 0,
            POSITION_AXES=0 if position_ids is None else len(ids),
            BLOCK=block,
            BLOCK_R=triton.next_power_of_2(cos.shape[-1]) if cos_sin else 1,
        )  # fmt: skip

    def shaped(result: Tensor, like: Tensor, last: int) -> Tensor:
        return result.reshape(*like.shape[: -2 - last], *result.shape[1:])

    return (
        out,
        tuple(shaped(result, part, 1) for result, part in zip((out_cos, out_sin), cos_sin, strict=False)),
        None if position_ids is None else shaped(out_ids, position_ids, 0),
    )
