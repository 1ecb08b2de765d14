"""A step after a pruned prompt: masks and positions over a cache whose deeper layers hold fewer entries.

Shapes: B batch, S prompt length before pruning, C after, K kept, T keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from .arguments import CACHE, cache_in
from .cache_state import PrunedPrompt, later_valid, physical_length
from .errors import VlmpruneError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def cross_mask(mask: Tensor | None, columns: Tensor) -> Tensor | None:
    """The kept columns [B, K] (-1 = filler) of an additive cross-attention mask [B, 1, S, T]: [B, 1, S, K]."""
    if mask is None:
        return None
    columns = columns.to(mask.device)
    index = columns.clamp(min=0)[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    filler = (columns < 0)[:, None, None, :]
    return torch.gather(mask, 3, index).masked_fill(filler, torch.finfo(mask.dtype).min)


class Decode:
    """A step, or a later turn of text, on a cache that a pruned prompt filled."""

    def __init__(self, state: PrunedPrompt, text_model: Any, mask: Any) -> None:
        self.state, self.text_model = state, text_model
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self.cache: Any = None
        self._built: dict[str, Any] = {}  # what the layers of a step share, made by the first that needs it

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if i < self.state.layer:
            return None
        hidden: Tensor = args[0]
        state = self.state.at(i)
        new = dict(kwargs)
        if self.state.cross_columns is not None:
            if (mask := kwargs.get("cross_attention_mask")) is None:
                return None
            if "cross" not in self._built:
                self._built["cross"] = cross_mask(mask, self.state.rows(len(hidden)).cross_columns)  # type: ignore[arg-type]  # checked above
            new["cross_attention_mask"] = self._built["cross"]
            return args, new
        sliding = is_sliding(self.text_model, i)
        kind = f"{'sliding' if sliding else 'full'} from {state.layer}"
        if kind not in self._built:
            self._built[kind] = self._mask(i, sliding, hidden, cache_in(kwargs))
        new["attention_mask"] = self._built[kind]
        if state.shift is not None:
            positions = f"positions from {state.layer}"
            if positions not in self._built:
                ids = kwargs["position_ids"] - state.rows(len(hidden)).shift[:, None]  # type: ignore[index]  # checked above
                self._built[positions] = ids, rotary(self.text_model, hidden, ids)
            new["position_ids"], new["position_embeddings"] = self._built[positions]
        return args, new

    def _mask(self, i: int, sliding: bool, hidden: Tensor, cache: Any) -> Any:
        """The mask over C + later entries; the model's own was sized for S, or for the first layer."""
        own = self.state.at(i)
        state = own.rows(hidden.shape[0])
        steps = hidden.shape[1]
        later = physical_length(cache, i) - state.slots.shape[1] + steps
        valid = later_valid(state, self.mask, later)
        if steps > 1:  # a later turn may bring padding of its own; single steps never do
            own.all_valid = own.all_valid and bool(valid.all())
        window = None
        if sliding:
            window = self._window(state, later, steps, i, cache)
        return create_causal_mask(
            config=self.text_model.config,
            inputs_embeds=hidden,
            attention_mask=None if own.all_valid else valid.to(hidden.device),
            and_mask_function=window,
            layer_idx=i,
            **{CACHE: cache},
        )

    def _window(self, state: PrunedPrompt, later: int, steps: int, i: int, cache: Any) -> Any:
        """A sliding window counted in original positions: counted in compact slots it would reach further back."""
        width = self.text_model.config.sliding_window
        implementation = self.text_model.config._attn_implementation
        if implementation not in ("sdpa", "eager"):
            raise VlmpruneError(
                f"Sliding windows over a pruned prompt are not supported with attn_implementation={implementation!r}; "
                "load the model with attn_implementation='sdpa'."
            )
        length, offset = cache.get_mask_sizes(steps, i)
        following = torch.arange(int(length) + int(offset) - state.slots.shape[1], device=state.slots.device)
        slots = torch.cat([state.slots, (state.length + following).expand(len(state.slots), -1)], dim=1)

        def inside(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return slots[batch, query] - slots[batch, key] < width

        return inside


def is_sliding(text_model: Any, i: int) -> bool:
    """Whether decoder layer i attends within a sliding window."""
    types = getattr(text_model.config, "layer_types", None) or []
    return i < len(types) and types[i] == "sliding_attention"


def rotary(text_model: Any, hidden: Tensor, ids: Tensor) -> Any:
    """Rotary embeddings of re-indexed positions, as the language model makes them."""
    return text_model.rotary_emb(hidden, ids)
