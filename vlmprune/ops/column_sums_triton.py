"""Triton kernels behind `column_sums.py`: softmax statistics for each part of the keys, then the column sums.

One program per query head would leave most of a GPU idle (32 programs on 132 processors at batch 1), so keys are split.
Both passes read the keys; the second hits the cache (25 MB of keys at 3,000 tokens, 50 MB of L2 on an H100).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_rows import Visibility
from .scores_triton import masked_scores, score_arguments

SPLITS = 64  # parts of the keys, at most
BLOCK_M = 16  # query rows of a tile, the minimum of tensor cores; FastV has one per head
BLOCK_N = 64


@triton.jit
def statistics_kernel(
    query, key, rows, mask, part_max, part_sum,
    scaling, softcap, window, H, G, S, T, R, span,
    query_b, query_h, query_s, query_d, key_b, key_g, key_t, key_d, rows_b, mask_b, mask_s, mask_t,
    D: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr, PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (part of the keys, batch and key head): row_max and row_sum of the softmax over that part."""
    part = tl.program_id(0)
    bg = tl.program_id(1).to(tl.int64)
    b, g = bg // G, bg % G
    group = H // G
    d = tl.arange(0, BLOCK_D)
    for start in range(0, group * R, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        h = g * group + m // R
        query_row = tl.load(rows + b * rows_b + m % R, mask=m < group * R, other=0)
        q_at = query + b * query_b + h[:, None] * query_h + query_row[:, None] * query_s + d[None, :] * query_d
        q = tl.load(q_at, mask=(m < group * R)[:, None] & (d < D)[None, :], other=0.0)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        for n in range(part * span, tl.minimum((part + 1) * span, T), BLOCK_N):
            t = n + tl.arange(0, BLOCK_N)
            k_at = key + b * key_b + g * key_g + t[None, :].to(tl.int64) * key_t + d[:, None] * key_d
            k = tl.load(k_at, mask=(t < T)[None, :] & (d < D)[:, None], other=0.0)
            s = masked_scores(
                q, k, b, query_row, t, (m < group * R)[:, None] & (t < T)[None, :], mask, mask_b, mask_s, mask_t,
                scaling, softcap, window, S, T, MASK, CAUSAL, CAPPED, WINDOWED, PRECISION,
            )  # fmt: skip
            new_max = tl.maximum(row_max, tl.max(s, axis=1))
            safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf less -inf is NaN
            row_sum = row_sum * tl.exp(row_max - safe_max) + tl.sum(tl.exp(s - safe_max[:, None]), axis=1)
            row_max = new_max
        to = (bg * PARTS + part) * group * R + m
        tl.store(part_max + to, row_max, mask=m < group * R)
        tl.store(part_sum + to, row_sum, mask=m < group * R)


@triton.jit
def columns_kernel(
    query, key, rows, weight, mask, part_max, part_sum, out,
    scaling, softcap, window, H, G, S, T, R,
    query_b, query_h, query_s, query_d, key_b, key_g, key_t, key_d, rows_b, weight_b, mask_b, mask_s, mask_t,
    D: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHTED: tl.constexpr,
    PARTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (keys, batch and key head): the columns' sums over this key head's query heads and rows: [B, G, T]."""
    bg = tl.program_id(1).to(tl.int64)
    b, g = bg // G, bg % G
    group = H // G
    d = tl.arange(0, BLOCK_D)
    t = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    parts = tl.arange(0, PARTS)
    k_at = key + b * key_b + g * key_g + t[None, :].to(tl.int64) * key_t + d[:, None] * key_d
    k = tl.load(k_at, mask=(t < T)[None, :] & (d < D)[:, None], other=0.0)
    acc = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, group * R, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        h = g * group + m // R
        query_row = tl.load(rows + b * rows_b + m % R, mask=m < group * R, other=0)
        q_at = query + b * query_b + h[:, None] * query_h + query_row[:, None] * query_s + d[None, :] * query_d
        q = tl.load(q_at, mask=(m < group * R)[:, None] & (d < D)[None, :], other=0.0)
        s = masked_scores(
            q, k, b, query_row, t, (m < group * R)[:, None] & (t < T)[None, :], mask, mask_b, mask_s, mask_t,
            scaling, softcap, window, S, T, MASK, CAUSAL, CAPPED, WINDOWED, PRECISION,
        )  # fmt: skip
        part_at = (bg * PARTS + parts[:, None]) * group * R + m[None, :]
        partial_max = tl.load(part_max + part_at, mask=(m < group * R)[None, :], other=0.0)
        partial_sum = tl.load(part_sum + part_at, mask=(m < group * R)[None, :], other=1.0)
        row_max = tl.max(partial_max, axis=0)
        row_sum = tl.sum(partial_sum * tl.exp(partial_max - row_max[None, :]), axis=0)
        weights = tl.exp(s - row_max[:, None]) / row_sum[:, None]
        if WEIGHTED:
            weights *= tl.load(weight + b * weight_b + m % R, mask=m < group * R, other=0.0)[:, None]
        acc += tl.sum(tl.where((m < group * R)[:, None], weights, 0.0), axis=0)
    tl.store(out + bg * T + t, acc, mask=t < T)


def column_sums(query: Tensor, key: Tensor, rows: Tensor, seen: Visibility, weight: Tensor | None) -> Tensor:
    """See `column_sums.column_sums`."""
    batch, heads, queries, _ = query.shape
    groups, keys = key.shape[1:3]
    rows = rows.contiguous()
    weight = rows if weight is None else weight.contiguous()
    read = heads // groups * rows.shape[1]
    mask, numbers, options = score_arguments(seen, query, keys, BLOCK_N)
    block = options["BLOCK_N"]
    span = triton.cdiv(keys, SPLITS * block) * block
    # Unused parts (3,000 keys fill 47 of 64) contribute nothing.
    part_max = query.new_full((batch * groups, SPLITS, read), float("-inf"), dtype=torch.float32)
    part_sum = torch.zeros_like(part_max)
    out = query.new_empty(batch, groups, keys, dtype=torch.float32)
    shape = (*numbers, heads, groups, queries, keys, rows.shape[1])
    options |= {"PARTS": SPLITS, "BLOCK_M": BLOCK_M}
    strides = (*query.stride(), *key.stride(), rows.stride(0))
    with torch.cuda.device_of(query):
        statistics_kernel[(triton.cdiv(keys, span), batch * groups)](
            query, key, rows, mask[0], part_max, part_sum, *shape, span, *strides, *mask[1:], **options
        )
        columns_kernel[(triton.cdiv(keys, block), batch * groups)](
            query, key, rows, weight, mask[0], part_max, part_sum, out, *shape,
            *strides, weight.stride(0), *mask[1:], WEIGHTED=weight is not rows, **options,
        )  # fmt: skip
    return out.sum(dim=1)
