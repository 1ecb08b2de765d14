"""VAR's redistribution of attention as a correction of the fused output, without the attention map (arXiv 2503.03321).

Shapes: B batch, S queries, T keys, H heads, G key heads, R rows, P columns that can be marked, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..attention.rows import attention_rows
from .dispatch import runs_triton


def redistribute(
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
    scaling: float,
    mask: Tensor | None = None,
    causal: bool = True,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Correct the output of attention in the rows and heads that pass the gate; in place, and returned.

    A row of a head passes where its attention to the image is at least `gate`, at least `rho` of that is not on sinks,
    and some is. It takes the share `p` from every sink and gives it to the visual tokens that are none, in proportion
    to their weights. The change is made in fp32.

    Args:
        output: [B, S, H, D]; where a gradient needs it, pass a copy. query: [B, H, S, D]. key, value: [B, G, T, D].
        rows: [B, R] query positions, -1 for none. sinks, visual: bool [B, P], of the first P keys.
        mask, causal, softcap, window: as in `attention_rows`.
    """
    plain_mask = mask is None or mask.dim() == 2 or mask.shape[1] == 1
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1] <= 256
    given = [output, query, key, value, rows, sinks, visual, *(() if mask is None else (mask,))]
    if plain_mask and same and runs_triton(*given):
        from .redistribution_triton import redistribute as launch

        return launch(output, query, key, value, rows, sinks, visual, p, rho, gate, scaling, mask, causal, softcap,
                      window)  # fmt: skip
    weights = attention_rows(
        query, key, mask, rows.clamp(min=0), scaling=scaling, causal=causal, softcap=softcap, window=window
    )[..., : sinks.shape[1]]
    # Rows that are none may have seen nothing: their NaN cannot be multiplied away.
    weights = weights.masked_fill((rows < 0)[:, None, :, None], 0.0)
    marks = torch.stack([sinks, visual, visual & ~sinks], dim=1).to(weights.dtype)
    sunk, image, free = (weights @ marks[:, None].transpose(-1, -2)).unbind(-1)
    take = ((image >= gate) & (free >= rho * image) & (free > 0)).to(weights.dtype) * p
    give = take * sunk / free.clamp(min=torch.finfo(free.dtype).tiny)
    changes = weights * (torch.stack([-take, give], dim=-1) @ marks[:, None, ::2])
    batch, heads, read, columns = changes.shape
    folded = changes.reshape(batch, key.shape[1], -1, columns) @ value[:, :, :columns].to(changes.dtype)
    change = folded.reshape(batch, heads, read, -1).transpose(1, 2)
    sample, row = (rows >= 0).nonzero(as_tuple=True)
    at = (sample, rows[sample, row])
    output[at] = (output[at] + change[sample, row]).to(output.dtype)
    return output
