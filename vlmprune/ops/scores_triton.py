"""The tile of attention scores that column sums and redistribution share, and how masks are passed to it.

A tile has rows that are (query head, chosen row) pairs of one key head, and columns that are keys.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_rows import Visibility

# Kinds of visibility: positions alone, positions and a padding mask, a 4-D bool mask, a 4-D additive mask.
POSITIONS, PADDING, BOOLEAN, ADDITIVE = 0, 1, 2, 3


@triton.jit
def masked_scores(
    q, k, b, query_row, t, inside,
    mask, mask_b, mask_s, mask_t,
    scaling, softcap, window, S, T,
    MASK: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores [M, N] in fp32 of query tile q [M, D] and key tile k [D, N], -inf where a row does not see a key.

    `query_row` [M]: the rows' query positions. `t` [N]: the keys. `inside` [M, N]: entries within bounds.
    """
    # Half formats are exact in tf32 too; Triton's interpreter would multiply the bits of bf16 as if they were integers.
    s = tl.dot(q.to(tl.float32), k.to(tl.float32), input_precision=PRECISION) * scaling
    if CAPPED:
        s = (2 * tl.sigmoid(2 * s / softcap) - 1) * softcap
    column = t[None, :]
    if MASK >= 2:
        at = mask + b * mask_b + query_row[:, None].to(tl.int64) * mask_s + column * mask_t
        given = tl.load(at, mask=inside, other=0)
        if MASK == 2:
            s = tl.where(given != 0, s, float("-inf"))
        else:
            s += given.to(tl.float32)
    else:
        row = query_row[:, None] + (T - S)
        if CAUSAL:
            s = tl.where(column <= row, s, float("-inf"))
        if WINDOWED:
            s = tl.where(column > row - window, s, float("-inf"))
        if MASK == 1:
            real = tl.load(mask + b * mask_b + column * mask_t, mask=column < T, other=0)
            s = tl.where(real != 0, s, float("-inf"))
    return tl.where(inside, s, float("-inf"))


def score_arguments(
    seen: Visibility, query: Tensor, keys: int, block: int
) -> tuple[tuple[Any, ...], tuple[float, float, int], dict[str, Any]]:
    """What `masked_scores` needs of a kernel's launch, by the names that the kernels share.

    Args:
        query: [B, H, S, D]. block: keys of a tile.
    Returns:
        Mask and its strides (batch, row, key); scaling, softcap and window; constants and the number of warps.
    """
    mask, batch, kind = seen.mask, len(query), POSITIONS
    given: tuple[Any, ...] = (query, 0, 0, 0)  # a stand-in that is never read
    if mask is not None and mask.dim() == 2:  # its last T columns count
        mask = as_bytes(mask[:, -keys:].expand(batch, -1))
        kind, given = PADDING, (mask, mask.stride(0), 0, mask.stride(1))
    elif mask is not None:
        mask = mask.expand(batch, -1, -1, -1)[:, 0, :, :keys]
        kind, given = BOOLEAN if mask.dtype == torch.bool else ADDITIVE, (as_bytes(mask), *mask.stride())
    width, single = query.shape[-1], query.dtype == torch.float32
    constants = {
        "D": width, "MASK": kind, "CAUSAL": seen.causal,
        "CAPPED": seen.softcap is not None, "WINDOWED": seen.window is not None,
        # Half formats are exact in the tensor cores' tf32; single precision takes three products (ieee spilled 3 kB).
        "PRECISION": "tf32x3" if single else "tf32",
        "BLOCK_D": max(16, triton.next_power_of_2(width)),  # tensor cores take 16 or more
    }  # fmt: skip
    return given, (seen.scaling, seen.softcap or 1.0, seen.window or 0), constants | tile(single, block)


def as_bytes(mask: Tensor) -> Tensor:
    """A bool mask as bytes: Triton would load it bit by bit."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def tile(single: bool, keys: int) -> dict[str, int]:
    """Keys of a tile and warps of a program: single precision takes twice the registers for each."""
    return {"BLOCK_N": keys // 2, "num_warps": 8} if single else {"BLOCK_N": keys, "num_warps": 4}
