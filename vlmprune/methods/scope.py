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
    part_size,
    rough_unit_rows,
    unit_rows,
)

_AT_ONCE = 8  # tokens that are looked at again before it is known how many have to be
_REMEMBERED = 256  # rows of similarities: 50 MB for 25,088 tokens


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
    """`greedy_coverage` of the cosines of features [V, D], which are not all made where V is large."""
    if len(features) <= WHOLE:
        return greedy_coverage(cosine(features), count, weights)
    rough = rough_unit_rows(features)
    gain = torch.zeros(len(rough), dtype=torch.float64, device=rough.device)
    for rows, others, near in pair_blocks(rough):
        gain[others] += near.clamp_(min=0).sum(dim=0)
        if rows != others:
            gain[rows] += near.sum(dim=1)
    del rough
    unit = unit_rows(features)
    return lazy_coverage(lambda some: unit[some] @ unit.T, (gain + ROUGH * len(unit)) * weights, count, weights)


def lazy_coverage(
    similar: Callable[[Tensor], Tensor], bounds: Tensor, count: int, weights: Tensor | None = None
) -> Tensor:
    """What `greedy_coverage` chooses, from similarities that are made when they are asked for.

    What a token adds can only become less, so what it added before is a bound, and only tokens whose bound reaches the
    best are looked at again (Minoux, 1978).

    Args:
        similar: from indices [b] to their similarities [b, U] to what is to be covered.
        bounds: [V], not below what each token adds while nothing is covered.
    """
    if count >= len(bounds):
        return torch.arange(len(bounds))
    made: dict[int, Tensor] = {}  # the last of them: a token is looked at many times

    def rows_of(some: Tensor) -> Tensor:
        wanted = some.tolist()
        if missing := [token for token in wanted if token not in made]:
            made.update(zip(missing, similar(bounds.new_tensor(missing, dtype=torch.long)), strict=True))
        rows = torch.stack([made[token] for token in wanted])
        for token in list(made)[: max(0, len(made) - _REMEMBERED)]:
            del made[token]
        return rows

    covered = torch.zeros_like(rows_of(torch.zeros(1, dtype=torch.long))[0])
    gain = bounds.clone()
    taken = torch.zeros(len(gain), dtype=torch.bool, device=covered.device)
    known = taken.clone()
    for _ in range(count):
        most = _AT_ONCE
        # Ties as in `greedy_coverage`: all that come within 1e-9 of the best, of which the first is taken.
        while len(more := (~known & (gain >= _bar(gain, known))).nonzero()[:, 0]):
            more = more[gain[more].sort(descending=True, stable=True).indices[:most]]
            new = rows_of(more).sub_(covered).clamp_(min=0).sum(dim=1)
            gain[more], known[more] = new if weights is None else new * weights[more].to(new), True
            most = min(2 * most, part_size(len(covered)))
        best = (known & (gain >= _bar(gain, known))).int().argmax()
        covered = torch.maximum(covered, rows_of(best[None])[0])
        taken[best], gain[best] = True, -torch.inf
        known = taken.clone()
    return taken.nonzero()[:, 0].cpu()


def _bar(gain: Tensor, known: Tensor) -> Tensor:
    return gain.masked_fill(~known, -torch.inf).max() * (1 - 1e-9)


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
        best = (gain >= gain.max() * (1 - 1e-9)).int().argmax()
        taken[best] = True
        covered = torch.maximum(covered, similarity[:, best])
    return taken.nonzero()[:, 0].cpu()
