"""What a pruned prompt leaves behind for the steps after it, kept on the cache that holds its keys and values.

The state is an attribute of the cache instance: it lives exactly as long, goes along when the cache is deep-copied for
reuse, and no "are there image tokens in the input?" guess is needed to tell a prompt from a later step (a model can
generate the image token's id).

Shapes: B batch, S prompt length before pruning, C prompt length after.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from .errors import VlmpruneError

_ATTRIBUTE = "_vlmprune_prompt"


@dataclass
class PrunedPrompt:
    """A prompt whose layers >= `layer` hold C instead of S entries.

    `slots` [B, C]: the position 0..S-1 each entry had. `valid` [B, C]: False at padding and filler. `all_valid`: no
    entry is invalid, later ones included. `shift` [B]: how far later position ids move down (0 unless re-indexed).
    `cross_columns` [B, K]: for cross-attention families, the kept columns of the cross-attention mask. `deeper`: of a
    prompt pruned more than once, the next deeper layer's.
    """

    layer: int
    length: int
    slots: Tensor
    valid: Tensor
    all_valid: bool
    shift: Tensor | None = None
    cross_columns: Tensor | None = None
    deeper: PrunedPrompt | None = None

    def at(self, layer: int) -> PrunedPrompt:
        """The state of a layer at or below this one."""
        return self.deeper.at(layer) if self.deeper is not None and self.deeper.layer <= layer else self

    @property
    def batch(self) -> int:
        return self.valid.shape[0] if self.cross_columns is None else self.cross_columns.shape[0]

    def rows(self, batch: int) -> PrunedPrompt:
        """The same state for a cache whose rows were repeated (beams, several return sequences).

        Raises:
            VlmpruneError: rows were taken out, so that it is unknown which are left.
        """
        if batch == self.batch:
            return self
        if batch % self.batch:
            raise VlmpruneError(
                f"The cache was filled by a pruned prompt of {self.batch} rows and is now used with {batch}; keep its "
                "rows together or run the prompt again."
            )

        def repeat(t: Tensor | None) -> Any:
            return None if t is None else t.repeat_interleave(batch // self.batch, dim=0)

        return PrunedPrompt(
            self.layer,
            self.length,
            repeat(self.slots),
            repeat(self.valid),
            self.all_valid,
            repeat(self.shift),
            repeat(self.cross_columns),
        )


def physical_length(cache: Any, layer: int) -> int:
    """How many entries a layer of the cache really holds; 0 where a growing cache has not made it yet."""
    return int(cache.layers[layer].get_seq_length()) if layer < len(cache.layers) else 0


def is_filled(cache: Any) -> bool:
    """Whether any layer of the cache holds anything."""
    return any(physical_length(cache, layer) for layer in range(len(cache.layers)))


def _logical(self: Any, layer_idx: int = 0) -> Any:
    held = type(self).get_seq_length(self, layer_idx)
    state: PrunedPrompt = getattr(self, _ATTRIBUTE).at(layer_idx)
    return held + (state.length - state.slots.shape[1]) if held else held


def _physical(self: Any, layer_idx: int = 0) -> Any:
    return type(self).get_seq_length(self, layer_idx)


def remember(cache: Any, state: PrunedPrompt) -> None:
    """Put the state on the cache.

    Models and `generate` ask the cache's first layer for the length seen so far, to place the next position ids and to
    cut a later turn's input. Pruned before layer 0 it would answer C where S is meant (a second turn was off by 4.1
    in its logits), so this one cache answers S, and C only where masks are sized. A state of a deeper layer joins the
    one of the same prompt that is there already.
    """
    first: PrunedPrompt | None = recall(cache)
    if first is not None and first.layer < state.layer:
        first.at(state.layer).deeper = state
        return
    setattr(cache, _ATTRIBUTE, state)
    if state.layer == 0 and state.cross_columns is None:
        cache.get_seq_length = MethodType(_logical, cache)
        cache.get_query_offset = MethodType(_physical, cache)


def recall(cache: Any) -> PrunedPrompt | None:
    """The state on a cache, or None; a cache that was reset has forgotten it."""
    state = getattr(cache, _ATTRIBUTE, None)
    if state is not None and not is_filled(cache):
        delattr(cache, _ATTRIBUTE)
        for name in ("get_seq_length", "get_query_offset"):
            cache.__dict__.pop(name, None)
        return None
    return state


def note(cache: Any, name: str, value: Any) -> None:
    """Keep what an intervention found out about a prompt on the cache that holds it; a later prompt replaces it."""
    setattr(cache, f"{_ATTRIBUTE}_{name}", value)


def noted(cache: Any, name: str) -> Any:
    """What `note` kept, or None."""
    return getattr(cache, f"{_ATTRIBUTE}_{name}", None)


def repeated(tensor: Tensor, batch: int) -> Tensor:
    """[rows, ...] of a prompt for a cache whose rows were repeated (beams, several return sequences): [batch, ...].

    Raises:
        VlmpruneError: rows were taken out, so that it is unknown which are left.
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
    new = torch.ones(state.valid.shape[0], later, dtype=torch.bool, device=state.valid.device)
    if mask is not None:
        given = mask[:, state.length : state.length + later].bool().to(new.device)
        new[:, : given.shape[1]] = given
    return torch.cat([state.valid, new], dim=1)
