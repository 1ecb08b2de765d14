"""Greedy choices where what a token adds can only fall with each: what it added before is a bound (Minoux, 1978).

So only tokens whose bound reaches the best are looked at again, and the choice is the one that looking at all of them
makes. Shapes: V tokens, b of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_EXACT = 12  # decimals: what two tokens are worth must not differ by rounding
_AT_ONCE, _MOST = 8, 1024  # tokens that are looked at again at a time, before it is known how many have to be

Worth = Callable[[Tensor, Tensor, Tensor], Tensor]


def first_largest(values: Tensor) -> int:
    """The index of the largest of some numbers of about 1 in fp64, the earlier one of two that differ by rounding."""
    return int(values.round(decimals=_EXACT).argmax())


def lazy_greedy(
    bounds: Tensor, count: int, worth: Worth, take: Callable[[int, float], None], first: int | None = None
) -> Tensor:
    """Take `count` tokens, each time the one that is worth most, the earlier one of two.

    Args:
        bounds: [V], not below what each is worth while nothing is chosen. worth: from indices [b], how many of those
            chosen each has been compared with [b] and what it was worth then [b] (its bound, if with none) to what it
            is worth now. take: called with each token that is chosen and what it is worth. first: taken before all.
    Returns:
        [count] ascending indices.
    """
    bounds, seen = bounds.clone(), torch.full((len(bounds),), -1, device=bounds.device)
    chosen: list[int] = []
    while len(chosen) < count:
        most = _AT_ONCE
        best = first_largest(bounds) if chosen or first is None else first
        while int(seen[best]) < len(chosen) and best != first:
            rows = bounds.topk(min(most, len(bounds))).indices
            rows = rows[(seen[rows] < len(chosen)) & (bounds[rows] > -torch.inf) & (rows != best)]
            rows = torch.cat([rows, seen.new_tensor([best])])
            bounds[rows] = worth(rows, seen[rows].clamp(min=0), bounds[rows])
            seen[rows] = len(chosen)
            best, most = first_largest(bounds), min(2 * most, _MOST)
        take(best, float(bounds[best]))
        bounds[best] = -torch.inf
        chosen.append(best)
    return torch.tensor(sorted(chosen))
