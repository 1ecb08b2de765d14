"""Attention column sums: the attention that each key receives from chosen query rows, without the attention map.

Shapes: B batch, S queries, T keys, H heads, G key heads, R chosen rows, D head width.
"""

import torch
from torch import Tensor

from .attention_rows import Visibility, attention_rows
from .dispatch import runs_triton


def column_sums(query: Tensor, key: Tensor, rows: Tensor, seen: Visibility, weight: Tensor | None = None) -> Tensor:
    """Softmax attention that every key receives from the chosen rows, summed over rows and heads in fp32: [B, T].

    Args:
        query: [B, H, S, D], rotary embedding applied. key: [B, G, T, D].
        rows: [B, R] query positions. A row that sees no key makes its sample NaN.
        weight: [B, R], how much each row counts; 1 where not given.
    """
    given = [query, key, rows, *(t for t in (weight, seen.mask) if t is not None)]
    if seen.in_kernels and query.dtype == key.dtype and query.shape[-1] <= 256 and runs_triton(*given):
        from .column_sums_triton import column_sums as launch

        return launch(query, key, rows, seen, weight)
    weights = attention_rows(query, key, rows, seen)
    if weight is None:
        return weights.sum(dim=1).sum(dim=1)
    return torch.einsum("bhrt,br->bt", weights, weight.to(weights.device))
