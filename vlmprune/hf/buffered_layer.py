"""A cache layer that grows in a buffer: a step writes its entries behind those that are there.

transformers' `DynamicLayer` concatenates: each step copies the whole cache, which on a CPU takes longer than attending
to it. Shapes: B batch, G key heads, T entries, D head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

FIRST_ROOM = 64  # entries; each time it is full there is twice as much room for the answer


class BufferedLayer(DynamicLayer):
    """`keys` and `values` [B, G, T, D] are views of buffers with spare room behind them.

    The room is 64 entries at first and doubles whenever it is full, so it is never larger than the answer (or 64), and
    an answer of n tokens is copied log2(n / 64) + 1 times in all. Whatever else replaces `keys` and `values` (cropping,
    selecting rows of the batch) is followed: tensors that are no views of the buffers are copied once more.
    """

    keys: Any  # a tensor, or None while there are no entries
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.room = FIRST_ROOM
        self.buffers: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> "BufferedLayer":
        """A layer with another's entries; the first step that is written allocates its buffers."""
        made = cls()
        made.__dict__.update(vars(layer))
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = (key_states, value_states)
        if not self.get_seq_length() or (torch.is_grad_enabled() and any(one.requires_grad for one in new)):
            self.buffers = None
            return super().update(key_states, value_states, *args, **kwargs)
        held, more = self.keys.shape[-2], key_states.shape[-2]
        if self.buffers is None or not self._fits(held + more):
            if self.buffers is not None and held + more > self.buffers[0].shape[-2]:
                self.room *= 2
            capacity = held + max(self.room, more)
            self.buffers = (_roomy(self.keys, capacity), _roomy(self.values, capacity))
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[..., held : held + more, :] = states
        self.keys, self.values = (buffer[..., : held + more, :] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams take others' places; within the buffers, so that the next step has its room."""
        if self.buffers is None or not self._fits(self.keys.shape[-2]):
            super().reorder_cache(beam_idx)
            return
        self.keys.copy_(self.keys.index_select(0, beam_idx.to(self.keys.device)))
        self.values.copy_(self.values.index_select(0, beam_idx.to(self.values.device)))

    def reset(self) -> None:
        super().reset()
        self.room, self.buffers = FIRST_ROOM, None

    def _fits(self, length: int) -> bool:
        """Whether keys and values are the first entries of the buffers, which have room for `length`.

        Not of buffers made under `torch.inference_mode()`, which cannot be written outside of it.
        """
        assert self.buffers is not None
        return all(
            held.data_ptr() == buffer.data_ptr()
            and (torch.is_inference_mode_enabled() or not buffer.is_inference())
            and held.stride() == buffer.stride()
            and held.shape[:2] == buffer.shape[:2]
            and length <= buffer.shape[-2]
            for held, buffer in zip((self.keys, self.values), self.buffers, strict=True)
        )


def grows(layer: Any) -> bool:
    """Whether a layer of a cache holds every entry as it came, and takes more behind whatever it holds."""
    plain = isinstance(layer, DynamicLayer) and type(layer).update in (DynamicLayer.update, BufferedLayer.update)
    return plain and not hasattr(layer, "indexer_keys")


def slides(layer: Any) -> bool:
    """Whether a layer of a cache lets go what its window has passed."""
    return isinstance(layer, DynamicSlidingWindowLayer)


def _roomy(states: Tensor, capacity: int) -> Tensor:
    """States [B, G, T, D] as the first entries of a buffer [B, G, capacity, D]."""
    buffer = states.new_empty((*states.shape[:-2], capacity, states.shape[-1]))
    buffer[..., : states.shape[-2], :] = states
    return buffer


def buffer_layers(cache: Any) -> bool:
    """Let the layers of a filled cache that concatenate grow in buffers; whether there are any."""
    plain = [i for i, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]
    for i in plain:
        cache.layers[i] = BufferedLayer.of(cache.layers[i])
    return bool(plain)
