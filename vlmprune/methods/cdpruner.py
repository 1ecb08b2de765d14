"""CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967): diverse tokens, weighted by what the question asks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.greedy import first_largest, lazy_greedy
from .per_image import WHOLE, ImageContext, PerImage, cosine, unit_rows

SMALL = 1e-6  # keeps the least relevant token possible, and the logarithm finite


@dataclass(frozen=True)
class CDPruner(PerImage):
    """Keeps the greedy mode of a determinantal point process with kernel diag(q) S diag(q).

    S is the cosine similarity of visual tokens, q their relevance: cosine similarity to the question's tokens, averaged
    over these and scaled to 0..1 over the image.

    Departures from the official code: its LLaVA takes relevance from CLIP's two towers, of which the models here bring
    one at most, so relevance comes from the language model's own embeddings, as the paper does where there is no text
    tower. That code also negates relevance, because CLIP's patches resemble a text less the more they show of it;
    embeddings of a language model have no such reason, so `negate` is off by default. Distances are fp64 instead of
    fp32, and relevance is scaled over each image instead of over all tiles of a batch.

    When: the question names what it is about, and the whole saving is wanted.

    Args:
        negate: whether the tokens least similar to the question count as the most relevant, as in the official LLaVA.
    """

    name: ClassVar[str] = "cdpruner"
    reads_text: ClassVar[bool] = True
    negate: bool = False

    def choose(self, image: ImageContext) -> Tensor:
        features = image.hidden.detach()
        weights = relevance(features, image.words.detach(), negate=self.negate)
        return greedy_mode_of(features, weights, image.count)


def relevance(features: Tensor, words: Tensor, *, negate: bool = False) -> Tensor:
    """Mean cosine similarity of visual tokens [V, D] to the words [T, D], scaled to 0..1 but never 0: [V].

    `negate`: the opposite number, which is then scaled alike.
    """
    mean = cosine(features, words).mean(dim=1) * (-1 if negate else 1)
    low, high = mean.min(), mean.max()
    span = (high - low).clamp(min=SMALL)
    return (mean - low) / span + SMALL / span


def kernel(features: Tensor, weights: Tensor) -> Tensor:
    """diag(q) S diag(q) for features [V, D] and weights q [V]: [V, V], in fp64 (the greedy steps subtract)."""
    return weights[:, None] * cosine(features) * weights[None, :]


def greedy_mode_of(features: Tensor, weights: Tensor, count: int) -> Tensor:
    """`greedy_mode` of the `kernel` of features [V, D] and weights [V], which is not made where V is large.

    With B = diag(q) times the unit vectors the kernel is B B^T, so a row of its Cholesky factor holds what each row of
    B shares with what the chosen one adds to those before: K vectors of D numbers take the place of V x V. A token's
    gain only falls, so few tokens are looked at for each that is chosen.
    """
    if len(features) <= WHOLE or count >= len(features):
        return greedy_mode(kernel(features, weights), count)
    added = torch.empty(count, features.shape[1], dtype=torch.float64, device=features.device)
    number = 0

    def scaled(rows: Tensor) -> Tensor:
        return unit_rows(features[rows]) * weights[rows, None]

    def worth(rows: Tensor, seen: Tensor, before: Tensor) -> Tensor:
        start = int(seen.min())
        new = torch.arange(start, number, device=rows.device) >= seen[:, None]
        return before - ((scaled(rows) @ added[start:number].T) ** 2 * new).sum(dim=1)

    def take(token: int, gain: float) -> None:
        nonlocal number
        new = scaled(torch.tensor([token], device=features.device))[0]
        # Where little is left of it, what rounding left of the others counts: once more.
        for _ in range(1 if gain > 0.01 * float(new @ new) else 2):
            new = new - added[:number].T @ (added[:number] @ new)
        added[number] = new / max(gain, SMALL**2) ** 0.5
        number += 1

    return lazy_greedy(weights**2, count, worth, take)


def greedy_mode(matrix: Tensor, count: int) -> Tensor:
    """Greedy maximum of log det over subsets of size `count`: [count] ascending indices, ties to the earlier one.

    Incremental Cholesky (Chen et al., NeurIPS 2018): `gain` is the factor by which the determinant grows with a token.
    """
    size = len(matrix)
    if count >= size:
        return torch.arange(size)
    gain = matrix.diagonal().clone()
    rows = torch.zeros(count, size, dtype=matrix.dtype, device=matrix.device)
    chosen: list[int] = []
    for step in range(count):
        best = first_largest(gain)
        chosen.append(best)
        # Beyond the rank of S every gain is rounding; the division must stay finite.
        root = gain[best].clamp(min=SMALL**2).sqrt()
        rows[step] = (matrix[best] - rows[:step, best] @ rows[:step]) / root
        gain = gain - rows[step] ** 2
        gain[chosen] = -float("inf")
    return torch.tensor(sorted(chosen))
