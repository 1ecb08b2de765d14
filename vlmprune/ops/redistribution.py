"""VAR's redistribution of attention as a correction of the fused output, without the attention map (arXiv 2503.03321).

Shapes: B batch, S queries, T keys, H heads, G key heads, R rows, P columns that can be marked, D head width.
"""

import torch
from torch import Tensor

from .attention_rows import Visibility, attention_rows, rows_at_once
from .correction import marks_of, redistribution, weighted_values
from .dispatch import runs_triton


def redistribute(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    sinks: Tensor,
    visual: Tensor,
    seen: Visibility,
    *,
    p: float,
    rho: float,
    gate: float,
) -> Tensor:
    """Correct the output of attention in the rows and heads that pass the gate; in place, and returned.

    A row of a head passes where its attention to the image is at least `gate`, at least `rho` of that is not on sinks,
    and some is. It takes the fraction `p` from every sink and gives it to the visual tokens that are not
    sinks, in proportion to their weights. The change is computed in fp32.

    Args:
        output: [B, S, H, D]; where a gradient needs it, pass a copy. query: [B, H, S, D]. key, value: [B, G, T, D].
        rows: [B, R] query positions, each once, -1 for none. sinks, visual: bool [B, P] of the first P keys, or
            [B, H, P] where heads hold other keys.
    """
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1] <= 256
    given = [output, query, key, value, rows, sinks, visual, *(() if seen.mask is None else (seen.mask,))]
    if seen.in_kernels and same and sinks.dim() == 2 and runs_triton(*given):
        from .redistribution_triton import redistribute as launch

        return launch(output, query, key, value, rows, sinks, visual, seen, p, rho, gate)
    marks, samples = marks_of(sinks, visual), torch.arange(len(output), device=output.device)[:, None]
    for part in rows.split(rows_at_once(query, key), dim=1):
        # -1 is replaced by the sample's last row: writing the same edit twice needs no synchronisation.
        place = torch.where(part < 0, part.amax(dim=1, keepdim=True), part)
        at = place.clamp(min=0)
        weights = attention_rows(query, key, at, seen)
        changes = redistribution(weights[..., : sinks.shape[-1]], marks, p=p, rho=rho, gate=gate)
        before = output[samples, at]
        after = (before + weighted_values(changes, value)).to(output.dtype)
        # In a sample without rows the row read may see no key: NaN, which multiplying by 0 would keep.
        output[samples, at] = torch.where((place < 0)[..., None, None], before, after)
    return output
