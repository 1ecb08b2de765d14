"""Rows of hidden states, each as a few numbers, so that every row of every layer can be held and compared.

Shapes: B batch, S sequence of the prompt, n rows that are there, D width, P numbers of a row.
"""

import functools

import torch
from torch import Tensor

from .layer_call import by_row

NUMBERS = 16


@functools.lru_cache(maxsize=4)
def _mixing(width: int) -> Tensor:
    """[D, P], the same every time: a difference in any column shows in all numbers."""
    return torch.randn(width, NUMBERS, generator=torch.Generator().manual_seed(0)) / width**0.5


def numbers_of(states: Tensor, axis: int) -> Tensor:
    """Hidden states with their rows along `axis`, counted from the end, as [B, n, P] on the CPU."""
    rows = by_row(states.detach(), axis).flatten(2).float()
    return (rows @ _mixing(rows.shape[-1]).to(rows.device)).cpu()


def rows_apart(one: Tensor, other: Tensor, left: Tensor) -> float:
    """The largest difference of rows [B, n, P] relative to the row, over those `left` [B, S] of the prompt.

    Where fewer are there than S, they are the last of those that are left.
    """
    found = [torch.zeros(1)]
    for ours, theirs in zip(_left(one, left), _left(other, left), strict=True):
        common = min(len(ours), len(theirs))
        ours, theirs = ours[len(ours) - common :], theirs[len(theirs) - common :]
        size = theirs.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9)
        found.append(((ours - theirs).abs() / size).flatten())
    return float(torch.cat(found).max())  # NaN where there is any


def _left(states: Tensor, left: Tensor) -> list[Tensor]:
    length = states.shape[1]
    if length == left.shape[1]:
        return [rows[own] for rows, own in zip(states, left.cpu(), strict=True)]
    return [rows[max(0, length - count) :] for rows, count in zip(states, left.sum(1).tolist(), strict=True)]
