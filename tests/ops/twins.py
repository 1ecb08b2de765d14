"""Naive twins of the kernels' operations: loops that say what is meant, in fp64 where sums are taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def compact_twin(hidden: Tensor, index: Tensor, *beside: Tensor) -> list[Tensor]:
    batch, slots = index.shape
    out = []
    for tensor in (hidden, *beside):
        rows = [[tensor[b % len(tensor), index[b, c]] for c in range(slots)] for b in range(batch)]
        out.append(torch.stack([torch.stack(row) for row in rows]))
    return out


def softmax_row(
    query: Tensor,
    key: Tensor,
    b: int,
    h: int,
    row: int,
    *,
    scaling: float,
    mask: Tensor | None = None,
    causal: bool = True,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """One row of the attention map: [T]."""
    queries, keys = query.shape[2], key.shape[2]
    group = query.shape[1] // key.shape[1]
    scores = key[b, h // group].double() @ query[b, h, row].double() * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    for t in range(keys):
        if mask is not None and mask.dim() == 4:
            given = mask[b % len(mask), 0, row, t]
            if mask.dtype != torch.bool:
                scores[t] += float(given)
            elif not given:
                scores[t] = -math.inf
            continue
        own = row + keys - queries
        hidden = (causal and t > own) or (window is not None and t <= own - window)
        if hidden or (mask is not None and not mask[b, t]):
            scores[t] = -math.inf
    return torch.softmax(scores, dim=0)


def columns_twin(query: Tensor, key: Tensor, rows: Tensor, weight: Tensor | None, **seen: object) -> Tensor:
    out = torch.zeros(len(query), key.shape[2], dtype=torch.float64)
    for b in range(len(query)):
        for h in range(query.shape[1]):
            for r, row in enumerate(rows[b].tolist()):
                times = 1.0 if weight is None else float(weight[b, r])
                out[b] += times * softmax_row(query, key, b, h, row, **seen)  # type: ignore[arg-type]
    return out


def redistribute_twin(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    sinks: Tensor,
    visual: Tensor,
    *,
    p: float,
    rho: float,
    gate: float,
    **seen: object,
) -> Tensor:
    """VAR as the paper writes it: the row's weights are changed, and the output is made anew from them."""
    out = output.clone()
    group = query.shape[1] // key.shape[1]
    for b in range(len(query)):
        sink, image = torch.zeros(2, key.shape[2], dtype=torch.bool)
        sink[: sinks.shape[1]], image[: visual.shape[1]] = sinks[b], visual[b]
        free = image & ~sink
        for h in range(query.shape[1]):
            for row in rows[b].tolist():
                if row < 0:
                    continue
                before = softmax_row(query, key, b, h, row, **seen)  # type: ignore[arg-type]
                on_image, on_free = float(before[image].sum()), float(before[free].sum())
                if on_image < gate or on_free < rho * on_image or on_free == 0:
                    continue
                after = before.clone()
                after[sink] = (1 - p) * before[sink]
                after[free] += p * float(before[sink].sum()) * before[free] / on_free
                assert abs(float(after.sum()) - 1) < 1e-9
                change = (after - before) @ value[b, h // group].double()
                out[b, row, h] = (output[b, row, h].double() + change).to(out.dtype)
    return out


def top_k_twin(scores: Tensor, spans: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    kept: list[int] = []
    for span, count in zip(spans, counts, strict=True):
        kept += sorted(span.tolist(), key=lambda i: (-float(scores[i]), i))[:count]
    return torch.tensor(sorted(kept), dtype=torch.long)
