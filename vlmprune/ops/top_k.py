"""Top-k per image span, in original order, without a host synchronisation, since the counts are known beforehand.

Shapes: V visual tokens of a sample, K kept.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import runs_triton

LARGEST_SPAN = 1 << 13  # tokens of one image that one program ranks; twice as many spilled registers


def top_k(scores: Tensor, spans: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """The `counts[i]` highest scores of every span; ties go to the earlier token.

    Args:
        scores: [V], without NaN. spans: per image, ascending indices into `scores`; disjoint.
        counts: per image, 0 to its length.
    Returns:
        [sum of counts] ascending indices 0..V-1.
    """
    if not spans:
        return torch.zeros(0, dtype=torch.long, device=scores.device)
    if max(len(span) for span in spans) <= LARGEST_SPAN and runs_triton(scores):
        from .top_k_triton import top_k as launch

        kept = launch(scores, spans, counts)
        return kept if len(spans) == 1 else torch.sort(kept).values
    chosen = []
    for span, count in zip(spans, counts, strict=True):
        positions = span.to(scores.device)
        order = torch.sort(scores[positions], descending=True, stable=True).indices
        chosen.append(positions[order[:count]])
    return torch.sort(torch.cat(chosen)).values
