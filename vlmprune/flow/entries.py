"""Which entries of a prompt's cache stay: scores and counts become a gather index, per layer, head and sample.

Shapes: B batch, G key heads (1 where all hold the same), P entries that a layer holds of a prompt, C those that stay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .compact import Compaction
from .select import check_ranked

Counts = Sequence[int] | Sequence[Sequence[int]]  # per sample, or per sample and head


def kept_entries(scores: Tensor, eligible: Tensor, always: Tensor, counts: Counts) -> Tensor:
    """The `counts[b]` highest scores of each head among a sample's eligible entries, and those that always stay.

    Ties go to the earlier entry.

    Args:
        scores: [B, G, P]. eligible, always: bool [B, P]. counts: per sample, or per sample and head, at most its
            eligible entries.
    Returns:
        bool [B, G, P].
    Raises:
        VlmpruneError: a score is NaN (not asked on a GPU, which would wait).
    """
    scores = scores.masked_fill(~eligible[:, None], float("-inf"))
    if scores.device.type == "cpu":
        check_ranked(scores)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    first = torch.arange(scores.shape[-1], device=scores.device) < _by_head(counts, scores.device)
    keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, first.expand_as(order))
    return keep | always[:, None]


def _by_head(counts: Counts, device: torch.device) -> Tensor:
    """[B, 1 or G, 1]."""
    made = torch.tensor(counts, device=device)
    return made.view(len(made), -1, 1)


def entry_index(keep: Tensor, lengths: Counts) -> Compaction:
    """A keep mask [B, G, P] of which every head of sample b keeps `lengths[b]`, as a gather index [B, G, C].

    Heads may have lengths of their own. Rows stay in their order and are padded on the left. The lengths are given, so
    a GPU is not asked for them.
    """
    flat = [one for own in lengths for one in (own if isinstance(own, Sequence) else [own])]
    longest = max(flat)
    index = torch.sort(keep.to(torch.uint8), dim=-1, stable=True).indices[..., keep.shape[-1] - longest :]
    short = longest - _by_head(lengths, keep.device)
    real = torch.arange(longest, device=keep.device) >= short
    return Compaction(index, real.expand_as(index), min(flat) != longest)


def page_index(scores: Tensor, page: int, pages: int, recent: int, length: int) -> Tensor:
    """The entries of the best pages of `page` neighbours, ascending: [..., K]; ties go to the earlier page.

    Args:
        scores: [..., N], more than `pages` pages of them. recent: how many of the last ones are always among them.
        length: how many entries there are; the last page may be shorter than the others.
    """
    number = scores.shape[-1]
    best = torch.sort(scores[..., : number - recent], dim=-1, descending=True, stable=True).indices
    last = torch.arange(number - recent, number, device=scores.device).expand(*scores.shape[:-1], -1)
    chosen = torch.cat([best[..., : pages - recent].sort(dim=-1).values, last], dim=-1)
    index = (chosen[..., None] * page + torch.arange(page, device=scores.device)).flatten(-2)
    return index[..., : index.shape[-1] - (number * page - length)]
