"""A cache layer whose heads hold different numbers of entries: two groups of heads, long and short.

Shapes: B batch, G key heads, H query heads, T entries of the longest head, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from ..errors import VlmpruneError
from .buffered_layer import BufferedLayer


class GroupedLayer(DynamicLayer):
    """Two layers in one, each with the entries of some heads, as long as the longest of these; the rest is filler.

    To its cache and to masks it is one layer as long as its longest head, of which shorter heads have filler at the
    start. `order` [B, G]: the key heads, those of the first group first, other ones in every sample. `fills` [B, G]: in
    the same order, how many entries at the start of a head are filler in its group; `ragged`: of each group, whether
    there are any. A step of the wrapped model arms it before `update` and runs its attention in two calls; without that
    it raises, since what `update` returns has the shape of keys and values, but holds nothing.
    """

    def __init__(
        self, parts: Sequence[DynamicLayer], order: Tensor, length: int, fills: Tensor, ragged: Sequence[bool]
    ) -> None:
        super().__init__()
        self.parts, self.order, self.length, self.armed = tuple(parts), order, length, False
        self.fills, self.ragged = fills, tuple(ragged)
        self.is_initialized = True
        self.dtype, self.device = parts[0].keys.dtype, parts[0].keys.device

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, index: Tensor, lengths: Tensor) -> "GroupedLayer":
        """From whole keys and values [B, G, P, D] what `index` [B, G, T] keeps of them, in each head the last
        `lengths` [B, G] of that."""
        order, sizes = head_groups(lengths)
        longest_of = torch.tensor([longest for heads, longest in sizes for _ in range(heads)])
        fills = longest_of - lengths.cpu().gather(1, order.cpu())
        ragged = [bool(part.any()) for part in fills.split([heads for heads, _ in sizes], dim=1)]
        parts, at = [], 0
        for heads, longest in sizes:
            own = order[:, at : at + heads].to(index.device)
            taken = index.gather(1, own[..., None].expand(-1, -1, index.shape[2]))[..., index.shape[2] - longest :]
            part = DynamicLayer()
            states = [_at_heads(whole, own).gather(2, _wide(taken, whole)) for whole in (keys, values)]
            part.update(*states)
            parts.append(part)
            at += heads
        return cls(parts, order.to(keys.device), index.shape[2], fills.to(keys.device), ragged)

    @property
    def keys(self) -> Any:
        """A stand-in [B, G, T, D] without storage of its own: the entries are in the groups."""
        return self._standing("keys")

    @keys.setter
    def keys(self, value: Any) -> None:
        if value is not None:
            raise VlmpruneError("The cache of single heads cannot be replaced by a tensor; run the prompt again.")
        self.parts, self.length = (), 0

    @property
    def values(self) -> Any:
        """As `keys`."""
        return self._standing("values")

    @values.setter
    def values(self, value: Any) -> None:
        if value is not None:
            self.keys = value

    def _standing(self, name: str) -> Any:
        if not self.parts:
            return None
        own = getattr(self.parts[0], name)
        return own.new_zeros(()).expand(len(self.order), self.order.shape[1], self.length, own.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.parts or not self.armed:
            raise VlmpruneError(
                "This cache was cut head by head, which only the wrapped model that filled it can read; call that one, "
                "or run the prompt again."
            )
        self.armed = False
        new = [_at_heads(states, self.order).split(self.sizes, dim=1) for states in (key_states, value_states)]
        for part, keys, values in zip(self.parts, *new, strict=True):
            part.update(keys, values)
        self.length += key_states.shape[-2]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length if self.parts else 0

    @property
    def sizes(self) -> list[int]:
        """How many key heads each group has."""
        return [part.keys.shape[1] for part in self.parts]

    def groups(self, states: Tensor, axis: int) -> list[Tensor]:
        """Something of each query head [..., H, ...], split into the groups."""
        ordered = _along(states.unflatten(axis, (self.order.shape[1], -1)), self.order, axis)
        return [part.flatten(axis, axis + 1) for part in ordered.split(self.sizes, dim=axis)]

    def together(self, outputs: Sequence[Tensor], axis: int) -> Tensor:
        """What was computed of each group, in the order of the heads."""
        joined = torch.cat(list(outputs), dim=axis).unflatten(axis, (self.order.shape[1], -1))
        return _along(joined, self.order.argsort(dim=1), axis).flatten(axis, axis + 1)

    def seen(self, group: int) -> list[Tensor | None]:
        """What a single row sees of each group: bool [B, its query heads, 1, entries], None where that is everything.

        Args:
            group: query heads of a key head.
        """
        found: list[Tensor | None] = []
        for part, fills, ragged in zip(self.parts, self.fills.split(self.sizes, dim=1), self.ragged, strict=True):
            real = torch.arange(part.keys.shape[2], device=fills.device) >= fills[..., None]
            found.append(real.repeat_interleave(group, dim=1)[:, :, None] if ragged else None)
        return found

    def seen_of_all(self, group: int) -> Tensor:
        """What a single row sees of `whole()`: bool [B, H, 1, T]."""
        short = [self.length - part.keys.shape[2] for part in self.parts for _ in range(part.keys.shape[1])]
        fills = self.fills + torch.tensor(short, device=self.fills.device)
        real = torch.arange(self.length, device=fills.device) >= fills[..., None]
        return _at_heads(real, self.order.argsort(dim=1)).repeat_interleave(group, dim=1)[:, :, None]

    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, T, D] with zeros as filler, made for whoever has to see all heads at once."""
        made = []
        for name in ("keys", "values"):
            own = [getattr(part, name) for part in self.parts]
            padded = [pad(states, (0, 0, self.length - states.shape[2], 0)) for states in own]
            made.append(_at_heads(torch.cat(padded, dim=1), self.order.argsort(dim=1)))
        return made[0], made[1]

    def buffered(self) -> None:
        """Let both groups grow in buffers."""
        self.parts = tuple(BufferedLayer.of(part) if type(part) is DynamicLayer else part for part in self.parts)

    # -- what generation does to a cache ---------------------------------------------------------------------------

    def reset(self) -> None:
        self.keys, self.is_initialized = None, False

    def crop(self, tokens_to_remove: int) -> None:
        more = -tokens_to_remove if tokens_to_remove <= 0 else self.length - tokens_to_remove
        for part in self.parts if more > 0 else ():
            part.keys, part.values = part.keys[..., :-more, :], part.values[..., :-more, :]
        self.length -= max(0, more) if self.parts else 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        for part in self.parts:
            part.batch_repeat_interleave(repeats)
        self.order, self.fills = (one.repeat_interleave(repeats, dim=0) for one in (self.order, self.fills))

    def batch_select_indices(self, indices: Tensor) -> None:
        for part in self.parts:
            part.batch_select_indices(indices)
        self.order, self.fills = self.order[indices], self.fills[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for part in self.parts:
            part.reorder_cache(beam_idx)
        beams = beam_idx.to(self.order.device)
        self.order, self.fills = self.order.index_select(0, beams), self.fills.index_select(0, beams)


def head_groups(lengths: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """Two groups of heads that store the least, each as long as its longest head in any sample.

    Args:
        lengths: [B, G].
    Returns:
        The heads of every sample, longest first, [B, G]; and of each group how many heads it has and its length.
    """
    ranked = torch.sort(lengths, dim=1, descending=True, stable=True)
    most = ranked.values.amax(dim=0).tolist()  # of the heads in each place
    heads = len(most)
    stored = {n: n * most[0] + (heads - n) * (most[n] if n < heads else 0) for n in range(1, heads + 1)}
    first = min(stored, key=lambda n: (stored[n], -n))
    return ranked.indices, [(n, most[at]) for n, at in ((first, 0), (heads - first, first)) if n]


def _wide(index: Tensor, states: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, states.shape[-1])


def _at_heads(states: Tensor, heads: Tensor) -> Tensor:
    """Heads [B, N] of [B, G, T, D]: [B, N, T, D]."""
    return _along(states, heads, 1)


def _along(states: Tensor, heads: Tensor, axis: int) -> Tensor:
    """Heads [B, N] of states [B, ..., G, ...], whose heads are on `axis`."""
    if len(heads) == 1:  # a fourth of a gather's time
        return states.index_select(axis, heads[0].to(states.device))
    shape = [1] * states.dim()
    shape[0], shape[axis] = heads.shape
    index = heads.to(states.device).view(shape)
    sizes = list(states.shape)
    sizes[axis] = heads.shape[1]
    return states.gather(axis, index.expand(sizes))
