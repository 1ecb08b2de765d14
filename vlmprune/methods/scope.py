"""SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): tokens that cover the image, weighted by their saliency."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .declared import number
from .per_image import (
    ROUGH,
    WHOLE,
    ImageContext,
    PerImage,
    cosine,
    pair_blocks,
    pair_rows,
    room_for_all,
    rough_unit_rows,
)

_AT_ONCE = 16  # tokens that are looked at again before it is known how many have to be
_TOGETHER = 128  # rows of similarities that are made at a time: for fewer, reading all tokens takes too long
_REMEMBERED = 3 << 23  # similarities, with what they are to: 288 MiB
_TIE = 1e-5  # of what a token adds: fp32 may be off by less
_FINE = 1e-9  # fp64


@dataclass(frozen=True)
class Scope(PerImage):
    """Keeps the tokens whose neighbourhoods cover all visual tokens, weighted by the vision tower's attention.

    Each step adds the token v with the largest sum_u max(0, cos(u, v) - covered_u) * attention_v^alpha, where covered_u
    is the largest cosine of token u to a chosen one, 0 at first. Attention is the class token's in the layer whose
    output the model uses (without a class token: the mean received). Departure from the official code: similarities
    are those of the projected features, since that is where tokens are dropped, not of the tower's.

    When: to start with, where the tower's patches are the visual tokens (`llava`, `paligemma`), above all at small
    budgets.

    Args:
        alpha: exponent of the attention; 0 is coverage alone.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "scope"
    reads_vision: ClassVar[bool] = True
    alpha: float = field(default=1.0, metadata=number(float, 0))

    def choose(self, image: ImageContext) -> Tensor:
        return coverage_of(image.hidden.detach(), image.count, image.tower.received.double() ** self.alpha)


def coverage_of(features: Tensor, count: int, weights: Tensor) -> Tensor:
    """`greedy_coverage` of the cosines of features [V, D]; where V is large they are fp32 and not all made."""
    if len(features) <= WHOLE:
        return greedy_coverage(cosine(features), count, weights)
    unit = rough_unit_rows(features)
    gain = torch.zeros(len(unit), dtype=torch.float64, device=unit.device)
    whole = room_for_all(unit)
    for rows, others, near in pair_blocks(unit, whole):
        gain[others] += near.clamp_(min=0).sum(dim=0)
        if rows != others:
            gain[rows] += near.sum(dim=1)
    return lazy_coverage(pair_rows(unit, whole), (gain + ROUGH * len(unit)) * weights, count, weights)


def lazy_coverage(
    similar: Callable[[Tensor], Tensor], bounds: Tensor, count: int, weights: Tensor | None = None
) -> Tensor:
    """What `greedy_coverage` chooses, from similarities that are made when they are asked for.

    What a token adds can only become less, so what it added before is a bound, and only tokens whose bound reaches the
    best are looked at again (Minoux, 1978). Of tokens that add the same, but for rounding, the first is taken.

    Args:
        similar: from indices [b] to their similarities [b, U] to what is to be covered, in fp32 or fp64.
        bounds: [V], not below what each token adds while nothing is covered.
    """
    if count >= len(bounds):
        return torch.arange(len(bounds))
    gain, rows = bounds.clone(), _Rows(similar, bounds)
    taken = torch.zeros(len(gain), dtype=torch.bool, device=gain.device)
    for _ in range(count):
        before, bar, most = gain.clone(), -torch.inf, _AT_ONCE
        while True:
            bound, more = before.topk(min(most, len(before)))
            if not len(more := more[(bound >= bar) & (bound > -torch.inf)]):
                break
            new = rows.gains(more, gain)
            new = new if weights is None else new * weights[more].to(new)
            gain[more], before[more] = new, -torch.inf
            bar, most = max(bar, float(new.max()) * (1 - rows.tie)), min(2 * most, _TOGETHER)
        best = int((gain >= bar).int().argmax())
        rows.cover(best, gain)
        taken[best], gain[best] = True, -torch.inf
    return taken.nonzero()[:, 0].cpu()


class _Rows:
    """Of each token the similarities that are above what is covered; as that only grows, the others never count again.

    Args:
        similar, bounds: as in `lazy_coverage`.
    """

    def __init__(self, similar: Callable[[Tensor], Tensor], bounds: Tensor) -> None:
        self._similar = similar
        self._absent = torch.ones_like(bounds, dtype=torch.bool)  # tokens whose row is not remembered
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}  # where they are above and what they are, the oldest first
        self._numbers = 0
        self._covered, self.tie = torch.zeros(()), _TIE

    def gains(self, some: Tensor, bounds: Tensor) -> Tensor:
        """What each token [b] adds to what is covered: [b], fp64. `bounds` [V]: those of the largest are made too."""
        tokens = some.tolist()
        self._make(tokens, bounds)
        index, near = (torch.cat(part) for part in zip(*(self._rows[token] for token in tokens), strict=True))
        sizes = torch.tensor([len(self._rows[token][0]) for token in tokens], device=some.device)
        owner = torch.arange(len(tokens), device=some.device).repeat_interleave(sizes)
        gap = (near - self._covered[index]).clamp_(min=0)
        left = gap > 0
        if 2 * int(left.sum()) < len(left):
            still = owner[left].bincount(minlength=len(tokens)).tolist()
            for token, own, values in zip(tokens, index[left].split(still), near[left].split(still), strict=True):
                self._remember(token, own.clone(), values.clone())
        return torch.zeros(len(tokens), dtype=torch.float64, device=some.device).index_add(0, owner, gap.double())

    def cover(self, token: int, bounds: Tensor) -> None:
        """Count as covered what a token covers."""
        self._make([token], bounds)
        index, near = self._rows.pop(token)
        self._numbers -= len(index)
        self._covered[index] = torch.maximum(self._covered[index], near)

    def _make(self, tokens: list[int], bounds: Tensor) -> None:
        while len(self._rows) > len(tokens) and self._numbers > _REMEMBERED:
            oldest = next(token for token in self._rows if token not in tokens)
            self._numbers -= len(self._rows.pop(oldest)[0])
            self._absent[oldest] = True
        if not (missing := [token for token in tokens if token not in self._rows]):
            return
        wish = bounds.masked_fill(~self._absent, -torch.inf)
        wish[missing] = torch.inf
        wish, new = wish.topk(min(max(len(missing), _TOGETHER), len(bounds)))
        new = new[wish > -torch.inf]
        self._absent[new] = False
        rows = self._similar(new)
        if not self._covered.dim():
            self._covered, self.tie = torch.zeros_like(rows[0]), _FINE if rows.dtype == torch.float64 else _TIE
        for token, row in zip(new.tolist(), rows, strict=True):
            index = (row > self._covered).nonzero()[:, 0]
            self._remember(token, index, row[index])

    def _remember(self, token: int, index: Tensor, near: Tensor) -> None:
        self._numbers += len(index) - len(self._rows.pop(token, (index[:0],))[0])
        self._rows[token] = index, near


def greedy_coverage(similarity: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Greedy maximum of weighted coverage: [count] ascending indices 0..V-1, ties to the earlier one.

    Args:
        similarity: [U, V], of what is to be covered (rows) to what may be chosen (columns); rows are covered by their
            largest entry in a chosen column, by 0 at first. weights: [V], by which a column's gain counts.
    """
    number_of_tokens = similarity.shape[1]
    if count >= number_of_tokens:
        return torch.arange(number_of_tokens)
    covered = torch.zeros_like(similarity[:, 0])
    taken = torch.zeros(number_of_tokens, dtype=torch.bool, device=similarity.device)
    for _ in range(count):
        gain = (similarity - covered[:, None]).clamp(min=0).sum(dim=0)
        if weights is not None:
            gain = gain * weights.to(gain)
        gain = gain.masked_fill(taken, -torch.inf)
        # Without weights two tokens may gain the same but for rounding, which differs between devices.
        best = (gain >= gain.max() * (1 - _FINE)).int().argmax()
        taken[best] = True
        covered = torch.maximum(covered, similarity[:, best])
    return taken.nonzero()[:, 0].cpu()
