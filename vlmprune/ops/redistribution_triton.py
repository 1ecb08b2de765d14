"""Triton kernel behind `redistribution.py`: one pass over keys and values, two weighted sums of values for each row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_rows import Visibility
from .scores_triton import masked_scores, score_arguments

BLOCK_M = 16
BLOCK_N = 32


@triton.jit
def redistribute_kernel(
    output, query, key, value, rows, sinks, visual, mask,
    p, rho, gate, scaling, softcap, window, H, G, S, T, R, P,
    output_b, output_s, output_h, output_d, query_b, query_h, query_s, query_d,
    key_b, key_g, key_t, key_d, value_b, value_g, value_t, value_d, rows_b, sinks_b, visual_b, mask_b, mask_s, mask_t,
    D: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (rows, batch and query head)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // H, bh % H
    g = h // (H // G)
    d = tl.arange(0, BLOCK_D)
    r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query_row = tl.load(rows + b * rows_b + r, mask=r < R, other=-1)
    edited = query_row >= 0
    query_row = tl.maximum(query_row, 0)
    q_at = query + b * query_b + h * query_h + query_row[:, None] * query_s + d[None, :] * query_d
    q = tl.load(q_at, mask=edited[:, None] & (d < D)[None, :], other=0.0)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    sink_mass = tl.zeros([BLOCK_M], tl.float32)
    image_mass = tl.zeros([BLOCK_M], tl.float32)
    free_mass = tl.zeros([BLOCK_M], tl.float32)
    acc_sinks = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    acc_free = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(0, T, BLOCK_N):
        t = n + tl.arange(0, BLOCK_N)
        k_at = key + b * key_b + g * key_g + t[None, :].to(tl.int64) * key_t + d[:, None] * key_d
        k = tl.load(k_at, mask=(t < T)[None, :] & (d < D)[:, None], other=0.0)
        s = masked_scores(
            q, k, b, query_row, t, edited[:, None] & (t < T)[None, :], mask, mask_b, mask_s, mask_t,
            scaling, softcap, window, S, T, MASK, CAUSAL, CAPPED, WINDOWED, PRECISION,
        )  # fmt: skip
        new_max = tl.maximum(row_max, tl.max(s, axis=1))
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        rescale = tl.exp(row_max - safe_max)
        weights = tl.exp(s - safe_max[:, None])
        row_max = new_max
        row_sum = row_sum * rescale + tl.sum(weights, axis=1)
        if n < P:  # columns from P on are neither sinks nor visual
            is_sink = tl.load(sinks + b * sinks_b + t, mask=t < P, other=0) != 0
            is_visual = tl.load(visual + b * visual_b + t, mask=t < P, other=0) != 0
            on_sinks = tl.where(is_sink[None, :], weights, 0.0)
            on_free = tl.where((is_visual & (is_sink == 0))[None, :], weights, 0.0)
            sink_mass = sink_mass * rescale + tl.sum(on_sinks, axis=1)
            image_mass = image_mass * rescale + tl.sum(tl.where(is_visual[None, :], weights, 0.0), axis=1)
            free_mass = free_mass * rescale + tl.sum(on_free, axis=1)
            v_at = value + b * value_b + g * value_g + t[:, None].to(tl.int64) * value_t + d[None, :] * value_d
            v = tl.load(v_at, mask=(t < P)[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)
            acc_sinks = acc_sinks * rescale[:, None] + tl.dot(on_sinks, v, input_precision=PRECISION)
            acc_free = acc_free * rescale[:, None] + tl.dot(on_free, v, input_precision=PRECISION)
        else:
            sink_mass *= rescale
            image_mass *= rescale
            free_mass *= rescale
            acc_sinks *= rescale[:, None]
            acc_free *= rescale[:, None]
    passes = edited & (image_mass >= gate * row_sum) & (free_mass >= rho * image_mass) & (free_mass > 0)
    gain = sink_mass / tl.where(free_mass > 0, free_mass, 1.0)
    change = p * (gain[:, None] * acc_free - acc_sinks) / row_sum[:, None]
    at = output + b * output_b + query_row[:, None] * output_s + h * output_h + d[None, :] * output_d
    inside = passes[:, None] & (d < D)[None, :]
    tl.store(at, (tl.load(at, mask=inside, other=0.0).to(tl.float32) + change), mask=inside)


def redistribute(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    sinks: Tensor,
    visual: Tensor,
    seen: Visibility,
    p: float,
    rho: float,
    gate: float,
) -> Tensor:
    """See `redistribution.redistribute`."""
    batch, heads, queries, _ = query.shape
    rows, sinks, visual = (t.contiguous() for t in (rows, sinks, visual))
    mask, numbers, options = score_arguments(seen, query, key.shape[2], BLOCK_N)
    with torch.cuda.device_of(query):
        redistribute_kernel[(triton.cdiv(rows.shape[1], BLOCK_M), batch * heads)](
            output, query, key, value, rows, sinks.view(torch.uint8), visual.view(torch.uint8), mask[0],
            p, rho, gate, *numbers,
            heads, key.shape[1], queries, key.shape[2], rows.shape[1], sinks.shape[1],
            *output.stride(), *query.stride(), *key.stride(), *value.stride(),
            rows.stride(0), sinks.stride(0), visual.stride(0), *mask[1:], BLOCK_M=BLOCK_M, **options,
        )  # fmt: skip
    return output
