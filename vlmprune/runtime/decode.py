"""A step after a pruned prompt: masks and positions over a cache whose deeper layers hold fewer entries.

Shapes: B batch, S prompt length before pruning, C after, K kept, T keys.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.masks import Sizes, check_window, own_mask, take_mask
from ..hf.arguments import cache_in
from ..hf.cache_state import PrunedPrompt, later_valid, physical_length, physical_sizes, repeated
from .setup import Setup

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Decode:
    """A step, or a later turn of text, on a filled cache."""

    def __init__(self, setup: Setup, state: PrunedPrompt | None, mask: Any) -> None:
        """`state`: of the pruned prompt that filled the cache, None where nothing was pruned. `mask`: what the base
        model was given."""
        self.setup, self.state = setup, state
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._built: dict[tuple[Any, ...], Any] = {}  # what the layers of a step share, made by the first that needs it

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if self.state is None:
            return None
        hidden: Tensor = args[0]
        if self.state.cross:
            cross = kwargs.get("cross_attention_mask")
            if cross is None or i < self.state.layer:
                return None
            left = self.state.rows(len(hidden))
            cut = self._once(("cross",), lambda: take_mask(cross, None, left.columns, left.ragged))
            return args, {**kwargs, "cross_attention_mask": cut}
        new = dict(kwargs)
        state, mask = self.state.at(i), kwargs.get("attention_mask")
        new["attention_mask"] = self._mask(i, state, mask, hidden, cache_in(kwargs))
        if state is None and new["attention_mask"] is mask:
            return None
        if state is not None and state.shift is not None:
            shift = state.shift
            moved = repeated(shift, len(hidden))[:, None]
            ids = new["position_ids"] = self._once(("ids", state.layer), lambda: kwargs["position_ids"] - moved)
            rotary = self.setup.text.rotary_emb
            new["position_embeddings"] = self._once(("rotary", state.layer), lambda: rotary(hidden, ids))
        return args, new

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._built:
            self._built[key] = make()
        return self._built[key]

    def _mask(self, i: int, state: PrunedPrompt | None, mask: Any, hidden: Tensor, cache: Any) -> Any:
        """The model's own mask of this layer over all S + later positions, cut to the entries that are there."""
        before, steps = physical_length(cache, i), hidden.shape[1]
        length, offset = physical_sizes(cache, steps, i)
        empty = length > before + steps - offset  # a cache of fixed size has room for more
        if state is None and not empty and (mask is None or (not offset and mask.shape[-1] == length)):
            return mask
        # The mask's identity will do: the model keeps it alive until its last layer has run.
        key = ("mask", id(mask), None if state is None else state.layer, length, offset, self.setup.windows[i])
        return self._once(key, lambda: self._cut(i, state, mask, hidden, (before, length, offset), empty))

    def _cut(
        self, i: int, state: PrunedPrompt | None, mask: Any, hidden: Tensor, sizes: tuple[int, int, int], empty: bool
    ) -> Any:
        (before, length, offset), steps = sizes, hidden.shape[1]
        config, window = self.setup.text.config, self.setup.windows[i]
        if state is None:
            entries = torch.arange(before + steps, device=hidden.device).expand(len(hidden), -1)
        else:
            state = state.rows(len(hidden))
            later = before + steps - state.columns.shape[1]
            if state.shift is not None and window is not None:
                # Re-indexed tokens count a window in the shortened sequence, as a model that was given it would.
                valid = later_valid(state, self.mask, later)
                return own_mask(config, hidden, valid, Sizes(length, offset, before), i, window)
            check_window(config, window, state.length + later)
            following = torch.arange(state.length, state.length + later, device=state.columns.device)
            entries = torch.cat([state.columns, following.expand(len(state.columns), -1)], dim=1)
        hides = empty or (state is not None and state.ragged)
        if mask is None and not hides:
            return None
        entries = entries[:, offset : offset + length]
        entries = nn.functional.pad(entries, (0, length - entries.shape[1]), value=-1)
        if mask is None:
            return own_mask(config, hidden, entries >= 0, Sizes(length, 0, before - offset), i, None)
        return take_mask(mask, None, entries, hides)
