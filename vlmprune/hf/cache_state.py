"""What a pruned prompt leaves behind for the steps after it, kept on the cache that holds its keys and values.

The state is an attribute of the cache instance: it lives exactly as long, goes along when the cache is deep-copied for
reuse, and no "are there image tokens in the input?" guess is needed to tell a prompt from a later step (a model can
generate the image token's id).

Shapes: B batch, S prompt length before pruning, C prompt length after, G key heads.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ..errors import VlmpruneError

_ATTRIBUTE = "_vlmprune_prompt"


@dataclass
class PrunedPrompt:
    """A prompt whose layers >= `layer` hold C instead of S entries.

    `columns` [B, C]: the position 0..S-1 of each entry, -1 at filler, or [B, G, C] where heads hold other entries, as
    many each; where `cross`, the kept columns [B, K] of the cross-attention mask instead, and the layers' own entries
    are all there. `ragged`: whether there is any filler. `shift` [B]: how far later position ids move down (0 unless
    re-indexed). `group`: query heads of a key head. `deeper`: of a prompt pruned more than once, or cut layer by layer,
    the next deeper layer's.
    """

    layer: int
    length: int
    columns: Tensor
    ragged: bool
    shift: Tensor | None = None
    cross: bool = False
    group: int = 1
    deeper: "PrunedPrompt | None" = None

    def at(self, layer: int) -> "PrunedPrompt | None":
        """The state of a decoder layer, None of one above the first that was pruned."""
        found, state = None, self if layer >= self.layer else None
        while state is not None and state.layer <= layer:
            found, state = state, state.deeper
        return found

    @property
    def entries(self) -> int:
        """How many entries of the prompt a row holds, filler included."""
        return self.columns.shape[-1]

    def rows(self, batch: int) -> "PrunedPrompt":
        """The same state for a cache whose rows were repeated; see `repeated`."""
        shift = None if self.shift is None else repeated(self.shift, batch)
        return replace(self, columns=repeated(self.columns, batch), shift=shift)


def holds_keys(cache: Any, layer: int) -> bool:
    """Whether a layer of the cache, made already, holds keys: not a recurrent layer's state, nor nothing at all."""
    return layer < len(cache.layers) and isinstance(cache.layers[layer], CacheLayerMixin)


def layer_kind(cache: Any, layer: int) -> type | None:
    """The class of a layer of the cache; layers of one class and window hold as many entries of a prompt as each other
    where it was pruned alike before them. None where it has not made the layer yet."""
    return type(cache.layers[layer]) if cache is not None and layer < len(cache.layers) else None


def physical_length(cache: Any, layer: int) -> int:
    """How many entries a layer of the cache has taken; 0 where a growing cache has not made it yet, and where it holds
    no keys."""
    return int(cache.layers[layer].get_seq_length()) if holds_keys(cache, layer) else 0


def physical_sizes(cache: Any, queries: int, layer: int) -> tuple[int, int]:
    """How many keys a layer's attention will get, and how many entries it has let go before them (sliding windows)."""
    if layer >= len(cache.layers):
        return queries, 0
    length, offset = type(cache).get_mask_sizes(cache, queries, layer)
    return int(length), int(offset)


def is_filled(cache: Any) -> bool:
    """Whether there is a cache and any of its layers holds anything."""
    return cache is not None and any(
        (isinstance(layer, CacheLayerMixin) and layer.get_seq_length()) or _has_state(layer) for layer in cache.layers
    )


def _has_state(layer: Any) -> bool:
    """Whether a layer of a cache has the state of a recurrence: one flag, or one for each of several states."""
    given = getattr(layer, "has_previous_state", False)
    return any(given.values()) if isinstance(given, dict) else bool(given)


def _logical_length(self: Any, layer_idx: int = 0) -> Any:
    held = type(self).get_seq_length(self, layer_idx)
    if not layer_idx:  # the cache's own, which is that of the first layer that holds keys
        layer_idx = next((i for i in range(len(self.layers)) if holds_keys(self, i)), 0)
    state = getattr(self, _ATTRIBUTE).at(layer_idx)
    return held + state.length - state.entries if held and state is not None else held


def _logical_sizes(self: Any, query_length: int, layer_idx: int) -> tuple[Any, int]:
    return int(self.get_seq_length(layer_idx)) + query_length, 0


def _reset(self: Any) -> None:
    """A cache that was reset, as `generate` does with the static one it uses again, has forgotten the prompt."""
    _forget(self)
    self.reset()


def _forget(cache: Any) -> None:
    for name in list(vars(cache)):
        if name.startswith(_ATTRIBUTE) or name in _ANSWERS:
            delattr(cache, name)


# What the cache of a pruned prompt does otherwise than its class.
_ANSWERS: dict[str, Callable[..., Any]] = {
    "get_seq_length": _logical_length,
    "get_mask_sizes": _logical_sizes,
    "reset": _reset,
}


class _Answer:
    """What the cache of a pruned prompt answers. The cache holds it, so it holds the cache weakly: keys and values in a
    circle would stay until Python looks for circles, fifteen caches long in a loop of `generate`."""

    def __init__(self, name: str, cache: Any) -> None:
        self._name, self._cache = name, weakref.ref(cache)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ANSWERS[self._name](self._cache(), *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:  # a copy of the cache has answers of its own
        return _Answer, (self._name, self._cache())


def remember(cache: Any, state: PrunedPrompt) -> None:
    """Put the state on the cache.

    Models and `generate` ask a cache for its length, to place position ids, to cut a later turn's input and to size
    masks; pruned layers would answer C where S is meant. So this one cache answers as if nothing had been dropped, and
    `decode.py` takes the columns that are there out of the masks. A deeper layer's state joins the prompt's first.
    """
    first: PrunedPrompt | None = recall(cache)
    if first is not None and first.layer < state.layer:
        last = first.at(state.layer)
        assert last is not None, "the first state's layer is above this one"
        last.deeper = state
        return
    setattr(cache, _ATTRIBUTE, state)
    for name in _ANSWERS:
        if name == "reset" or not state.cross:
            setattr(cache, name, _Answer(name, cache))


def remember_layers(cache: Any, states: Sequence[PrunedPrompt]) -> None:
    """Put the states of a prompt's layers on the cache in place of what is there: one each, ascending."""
    for state, deeper in zip(states, [*states[1:], None], strict=True):
        state.deeper = deeper
    vars(cache).pop(_ATTRIBUTE, None)
    remember(cache, states[0])


def recall(cache: Any) -> PrunedPrompt | None:
    """The state on a cache, or None without one; a cache that was reset has forgotten it."""
    state = getattr(cache, _ATTRIBUTE, None)
    if state is not None and not is_filled(cache):
        _forget(cache)
        return None
    return state


def attach_state(cache: Any, name: str, value: Any) -> None:
    """Keep what an intervention found out about a prompt on the cache that holds it; a later prompt replaces it."""
    setattr(cache, f"{_ATTRIBUTE}_{name}", value)


def state_of(cache: Any, name: str) -> Any:
    """What `attach_state` kept, or None."""
    return getattr(cache, f"{_ATTRIBUTE}_{name}", None)


def repeated(tensor: Tensor, batch: int) -> Tensor:
    """[rows, ...] of a prompt for a cache whose rows were repeated (beams, several return sequences): [batch, ...].

    Refused where rows were taken out, so that it is unknown which are left.
    """
    if batch == len(tensor):
        return tensor
    if batch % len(tensor):
        raise VlmpruneError(
            f"The cache was filled by a prompt of {len(tensor)} rows and is now used with {batch}; keep its rows "
            "together or run the prompt again."
        )
    return tensor.repeat_interleave(batch // len(tensor), dim=0)


def later_valid(state: PrunedPrompt, mask: Tensor | None, later: int) -> Tensor:
    """Padding mask [B, C + later] of the pruned prompt and the `later` entries after it.

    Args:
        mask: the caller's 2-D mask over the unpruned sequence, whose columns from S on are the later entries, or None.
    """
    valid = state.columns >= 0
    new = torch.ones(len(valid), later, dtype=torch.bool, device=valid.device)
    if mask is not None:
        given = mask[:, state.length : state.length + later].bool().to(new.device)
        new[:, : given.shape[1]] = given
    return torch.cat([valid, new], dim=1)
