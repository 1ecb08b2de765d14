"""Softmax attention of chosen query rows: a pure function of the inputs of an attention kernel.

Shapes: B batch, S query length, T key length, H heads, R chosen rows, D head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_ROOM = 1 << 20  # weights computed at a time, in elements: 4 MiB


@dataclass(frozen=True)
class Visibility:
    """How an attention kernel scores keys, and which of them a query row sees.

    `mask`: as the kernel gets it: 4-D bool (True = visible) or additive [B or 1, 1 or H, S, >= T], 2-D [B, T] padding
    mask (FlashAttention), or None. `causal`: whether rows see only keys up to themselves where the mask does not encode
    it (None or 2-D). `window`: sliding window of kernels that apply it themselves (2-D masks or None). `learned_sinks`
    [H]: a logit of every head beside those of the keys (GPT-OSS).
    """

    scaling: float
    mask: Tensor | None = None
    causal: bool = True
    softcap: float | None = None
    window: int | None = None
    learned_sinks: Tensor | None = None

    @property
    def in_kernels(self) -> bool:
        """Whether the Triton kernels have it: masks of single heads and learned sinks are rare."""
        plain = self.mask is None or self.mask.dim() == 2 or self.mask.shape[1] == 1
        return plain and self.learned_sinks is None


def rows_at_once(query: Tensor, key: Tensor) -> int:
    """How many query rows can be processed at a time before their weights need more memory than the call's output.

    Otherwise a long question on a long prompt would need as much memory as the full attention map.
    """
    batch, heads, queries, width = query.shape
    room = max(LEAST_ROOM, batch * heads * queries * width)
    return max(1, room // (batch * heads * key.shape[2]))


def row_chunks(query: Tensor, key: Tensor, start: int) -> Iterator[tuple[int, Tensor]]:
    """Query rows start..S-1 of every sample in chunks: (number of the first row, rows [B, R]).

    A chunk's weights need no more memory than the output. The first number is a host integer, so that no caller has
    to synchronise to read it.
    """
    batch, queries = len(query), query.shape[2]
    step = rows_at_once(query, key)
    for at in range(start, queries, step):
        yield at, torch.arange(at, min(queries, at + step), device=query.device).expand(batch, -1)


def attention_rows(query: Tensor, key: Tensor, rows: Tensor, seen: Visibility) -> Tensor:
    """Softmax attention of chosen query rows, in fp32.

    Args:
        query: [B, H, S, D], rotary embedding applied. key: [B, H or fewer (grouped), T, D].
        rows: [B, R] query positions 0..S-1.
    Returns:
        [B, H, R, T]; every row sums to 1, to less with learned sinks.
    """
    batch, heads, queries, width = query.shape
    keys, scaling, softcap = key.shape[2], seen.scaling, seen.softcap
    rows = rows.to(query.device)
    chosen = torch.gather(query, 2, rows[:, None, :, None].expand(-1, heads, -1, width))
    # Grouped queries: fold the group into the rows instead of repeating the keys.
    group = heads // key.shape[1]
    grouped = chosen.reshape(batch, key.shape[1], group * rows.shape[1], width)
    scores = (grouped.float() @ key.float().transpose(-1, -2)).reshape(batch, heads, rows.shape[1], keys) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    mask = visible_keys(rows, queries, keys, seen)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
    if seen.learned_sinks is None:
        return torch.softmax(scores, dim=-1)
    beside = seen.learned_sinks.float().view(1, heads, 1, 1).expand(batch, -1, rows.shape[1], -1)
    return torch.softmax(torch.cat([scores, beside.to(scores.device)], dim=-1), dim=-1)[..., :-1]


def visible_keys(rows: Tensor, queries: int, keys: int, seen: Visibility) -> Tensor:
    """Which keys a kernel shows to query rows [B, R]: [B, 1 or H, R, keys], bool (True = visible) or additive."""
    batch, mask, window = len(rows), seen.mask, seen.window
    if mask is not None and mask.dim() == 4:
        picked = mask.expand(batch, -1, -1, -1)[..., :keys]
        return torch.gather(picked, 2, rows[:, None, :, None].expand(-1, picked.shape[1], -1, keys))
    column = torch.arange(keys, device=rows.device)
    row = (rows + (keys - queries))[:, :, None]
    visible = torch.ones(batch, rows.shape[1], keys, dtype=torch.bool, device=rows.device)
    if seen.causal:
        visible &= column <= row
    if window is not None:
        visible &= column > row - window
    if mask is not None:
        visible &= mask.bool()[:, None, -keys:].to(rows.device)
    return visible[:, None]
