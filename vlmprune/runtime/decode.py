"""A step after a pruned prompt: masks and positions over a cache whose deeper layers hold fewer entries.

Shapes: B batch, S prompt length before pruning, C after, K kept, T keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.masks import Sizes, by_head, check_hides, check_window, own_mask, still_seen, take_mask
from ..hf.arguments import cache_in
from ..hf.cache_state import (
    PrunedPrompt,
    holds_keys,
    later_valid,
    layer_kind,
    physical_length,
    physical_sizes,
    repeated,
)
from ..hf.grouped_layer import GroupedLayer
from ..ops.gather import one_stream
from .layer_before import LayerBefore
from .setup import Setup

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Decode:
    """A step, or a later turn of text, on a filled cache."""

    def __init__(self, setup: Setup, state: PrunedPrompt | None, mask: Any, tokens: tuple[int, int]) -> None:
        """`state`: of the pruned prompt that filled the cache, None where nothing was pruned. `mask`: what the base
        model was given. `tokens`: rows and columns of what it was given."""
        self.setup, self.state, self.tokens = setup, state, tokens
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._built: dict[tuple[Any, ...], Any] = {}  # what the layers of a step share, made by the first that needs it
        self._sizes: dict[int, tuple[int, int, int]] = {}  # entries before the step, keys, entries let go: of a layer
        self._before = LayerBefore()

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if self.state is None or self.setup.attentions[i] is None:  # a recurrence goes on from its state
            return None
        hidden = self.stream(i, args[0])
        if self.state.cross:
            cross = kwargs.get("cross_attention_mask")
            if cross is None or i < self.state.layer:
                return None
            left = self.state.rows(len(hidden))
            cut = self._once(("cross",), lambda: take_mask(cross, None, left.columns, left.ragged))
            return args, {**kwargs, "cross_attention_mask": cut}
        state, cache = self.state.at(i), cache_in(kwargs)
        kind = self.setup.kinds[i], id(state), layer_kind(cache, i)
        if not self._before.same(kind, hidden, kwargs):
            if self.setup.sources[i] == i:  # a layer that uses another's comes after that has run
                self._sizes[i] = (physical_length(cache, i), *physical_sizes(cache, self.tokens[1], i))
            self._before.keep(kind, hidden, kwargs, self._changed(i, state, hidden, kwargs))
        made = self._before.made
        return None if made is None else (args, made)

    def _changed(
        self, i: int, state: PrunedPrompt | None, hidden: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any] | None:
        """A layer's arguments over the entries that it holds, None where they are those that it is given."""
        new = dict(kwargs)
        cache, mask = cache_in(kwargs), kwargs.get("attention_mask")
        new["attention_mask"] = self._mask(i, state, mask, hidden, cache)
        if state is not None and i in self.setup.counted and kwargs.get("position_ids") is not None:
            first = self._sizes[i][0]
            new["position_ids"] = torch.arange(first, first + hidden.shape[1], device=hidden.device)[None]
        if state is not None and state.shift is not None:
            shift = state.shift
            moved = repeated(shift, len(hidden))[:, None]
            ids = new["position_ids"] = self._once(("ids", state.layer), lambda: kwargs["position_ids"] - moved)
            rotary = self.setup.text.rotary_emb
            new["position_embeddings"] = self._once(("rotary", state.layer), lambda: rotary(hidden, ids))
        return None if all(kwargs.get(name) is value for name, value in new.items()) else new

    def stream(self, i: int, hidden: Tensor) -> Tensor:
        """Hidden states [B, new tokens, D] that enter a layer; of a model that keeps several streams of them the
        first."""
        return one_stream(hidden, *self.tokens)

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._built:
            self._built[key] = make()
        return self._built[key]

    def _mask(self, i: int, state: PrunedPrompt | None, mask: Any, hidden: Tensor, cache: Any) -> Any:
        """The model's own mask of this layer over all S + later positions, cut to the entries that are there."""
        source, steps = self.setup.sources[i], self.tokens[1]
        before, length, offset = self._sizes[source]
        empty = length > before + steps - offset  # a cache of fixed size has room for more
        if state is None and not empty and (mask is None or (not offset and mask.shape[-1] == length)):
            return mask
        # The mask's identity will do: the model keeps it alive until its last layer has run.
        held = None if self.state is None else self.state.at(source)
        layers = tuple(None if one is None else one.layer for one in (state, held))
        key = ("mask", id(mask), *layers, length, offset, self.setup.windows[i])
        grouped = holds_keys(cache, source) and isinstance(cache.layers[source], GroupedLayer)
        return self._once(key, lambda: self._cut(i, state, mask, hidden, (before, length, offset), empty, grouped))

    def _cut(
        self, i: int, state: PrunedPrompt | None, mask: Any, hidden: Tensor, sizes: tuple[int, int, int], empty: bool,
        grouped: bool,
    ) -> Any:  # fmt: skip
        (before, length, offset), steps = sizes, self.tokens[1]
        held = None if self.state is None else self.state.at(self.setup.sources[i])  # of the keys
        config, window = self.setup.text.config, self.setup.windows[i]
        total, hides = before + steps, empty
        alike = held is not None and state is not None and held.columns is state.columns
        if held is not None:
            held = held.rows(len(hidden))
            later = before + steps - held.entries
            if held.shift is not None and window is not None:
                # Re-indexed tokens count a window in the shortened sequence, as a model that was given it would.
                valid = later_valid(held, self.mask, later)
                return own_mask(config, hidden, valid, Sizes(length, offset, before), i, window)
            total, hides = held.length + later, hides or held.ragged
        if state is not None:
            check_window(config, window, total)
        # A layer in groups masks the filler of a single row by itself.
        masked = hides and not (grouped and steps == 1 and config._attn_implementation == "sdpa")
        if mask is None and not masked and (state is None or alike):
            return None
        entries = torch.arange(total, device=hidden.device).expand(len(hidden), -1)
        if held is not None:
            entries = _followed(held, later)
        if state is not None and not alike:  # its keys are those of an earlier stage
            check_hides(config, i, self.setup.sources[i])
            left = _followed(state.rows(len(hidden)), total - state.length)
            entries, hides = still_seen(entries, left, total), True
        entries = entries[..., offset : offset + length]
        entries = nn.functional.pad(entries, (0, length - entries.shape[-1]), value=-1)
        if mask is None:
            first = before - offset + steps - hidden.shape[1]  # later layers may run only the last new rows
            real = entries >= 0
            if real.dim() == 3 and held is not None and not bool((real == real[:, :1]).all()):
                return by_head(real, held.group, steps, config)
            return own_mask(config, hidden, real if real.dim() == 2 else real[:, 0], Sizes(length, 0, first), i, None)
        return take_mask(mask, None, entries, hides, 1 if held is None else held.group)


def _followed(state: PrunedPrompt, later: int) -> Tensor:
    """The positions [B, C + later], or [B, G, C + later], of a layer's entries: the prompt's, and `later` ones after
    it."""
    following = torch.arange(state.length, state.length + later, device=state.columns.device)
    return torch.cat([state.columns, following.expand(*state.columns.shape[:-1], -1)], dim=-1)
