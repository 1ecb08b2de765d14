"""What happens inside one forward of the decoder layers: a prompt that is pruned, or a step after one.

Both offer `enter(i, args, kwargs)`, called by a pre-hook on decoder layer i, which returns the layer's new arguments or
None to leave them. Shapes: B batch, S sequence, C sequence after compaction, V visual tokens, D width, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from .attention.probe import AttentionCall, column_sums
from .attention.tower import VisionStats
from .cache_state import PrunedPrompt, later_valid, physical_length, remember
from .errors import VlmpruneError
from .families import Family
from .flow.compact import Compaction, compaction, gather_mask, gather_positions, gather_rows, keep_mask
from .flow.locate import SampleLayout
from .flow.select import Selection
from .methods.base import Prompt, Pruner, last_valid
from .sinks.watcher import VisualSinkWatcher

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Prefill:
    """A prompt: located, scored, selected and compacted at the pruner's layer, gathered in every layer after it."""

    def __init__(
        self,
        pruner: Pruner | None,
        layer: int,
        family: Family,
        text_model: Any,
        input_ids: Tensor,
        valid: Tensor,
        layouts: list[SampleLayout],
        importance: list[Tensor] | None = None,
    ) -> None:
        self.pruner, self.layer, self.family, self.text_model = pruner, layer, family, text_model
        self.input_ids, self.valid, self.layouts = input_ids, valid, layouts
        self.attention: Tensor | None = None
        self.keys: Tensor | None = None
        self.vision: list[VisionStats] | None = None
        self.importance = importance
        self.selection: Selection | None = None
        self.chosen: Compaction | None = None
        self.deepstack: tuple[Tensor, list[Tensor]] | None = None
        self.sink_watcher: VisualSinkWatcher | None = None  # for pruners that leave visual sinks out
        self.cache: Any = None  # which cache the layers fill, from the first of them on
        self.prompt_length = input_ids.shape[1]  # with use_cache=False, what comes after it was generated
        self._gathered: dict[tuple[str, int], Any] = {}
        self._keep_alive: list[Any] = []

    # -- reading the layer before ------------------------------------------------------------------------------

    def observe(self, call: AttentionCall, output: Tensor) -> None:
        """Attention of the last prompt token in the probed layer, mean over heads [B, S or cross states], and keys."""
        assert self.pruner is not None
        if self.pruner.reads_keys:  # a static cache has room for more than the prompt
            self.keys = call.key.detach()[:, :, : self.valid.shape[1]]
        rows = last_valid(self.valid).to(call.query.device)[:, None]
        self.attention = column_sums(call.weights(rows, causal=not self.family.cross_attention))

    # -- the flow ----------------------------------------------------------------------------------------------

    def _select(self, hidden: Tensor) -> Selection:
        assert self.pruner is not None
        sinks = self.sink_watcher.among(hidden, self.layouts, self.layer) if self.sink_watcher else None
        prompt = Prompt(
            self.layouts,
            hidden,
            self.input_ids,
            self.valid,
            self.layer,
            self.attention,
            self.importance,
            sinks,
            self.keys,
            self.vision,
        )
        selection = self.pruner.select(prompt)  # not under no_grad: merged states carry the gradient
        for kept, layout in zip(selection.kept, self.layouts, strict=True):
            steps = torch.diff(kept.cpu(), prepend=torch.tensor([-1]), append=torch.tensor([layout.count]))
            if layout.count and (len(kept) == 0 or bool((steps < 1).any())):
                raise VlmpruneError(
                    f"The method {type(self.pruner).__name__} kept {len(kept)} of {layout.count} visual tokens; a "
                    "method must keep at least one, as ascending indices below that number, none twice."
                )
        return selection

    @property
    def drops(self) -> bool:
        """Whether anything was dropped or merged; else every layer runs untouched, bit by bit."""
        return self.selection is not None and any(
            len(kept) < layout.count for kept, layout in zip(self.selection.kept, self.layouts, strict=True)
        )

    def _choose(self, hidden: Tensor, cache: Any) -> None:
        """Select, and turn the selection into a gather index over the sequence."""
        self.selection = self._select(hidden)
        if not self.drops:
            return
        # Padding is not eligible: it goes too, and rows are re-padded to the longest.
        self.chosen = self._compaction(self.valid.to(hidden.device))
        if cache is not None:
            remember(cache, self._state())

    def _compaction(self, eligible: Tensor) -> Compaction:
        assert self.selection is not None
        return compaction(keep_mask(eligible, [layout.slots for layout in self.layouts], self.selection.kept))

    def _state(self) -> PrunedPrompt:
        assert self.chosen is not None and self.pruner is not None
        dropped = torch.tensor(
            [layout.count - len(kept) for layout, kept in zip(self.layouts, self.selection.kept, strict=True)]  # type: ignore[union-attr]  # set by _choose
        )
        shift = dropped.to(self.chosen.index.device) if self.pruner.positions == "compact" else None
        return PrunedPrompt(
            self.layer, self.valid.shape[1], self.chosen.index, self.chosen.real, not self.chosen.ragged, shift
        )

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if self.pruner is None or i < self.layer:
            return None
        hidden: Tensor = args[0]
        cache = kwargs.get("past_key_values")
        if i == self.layer:
            if self.selection is None:  # set already when gradient checkpointing runs the layer a second time
                self._choose(hidden, cache)
            if self.chosen is not None:
                hidden = self._compact(hidden)
        if self.chosen is None:
            return None
        new = dict(kwargs)
        new["position_embeddings"] = self._positions(kwargs, hidden)
        if kwargs.get("position_ids") is not None:
            new["position_ids"] = self._once("ids", kwargs["position_ids"], self._gather_ids)
        new["attention_mask"] = self._mask(i, kwargs.get("attention_mask"), hidden, cache)
        return (hidden, *args[1:]), new

    def _compact(self, hidden: Tensor) -> Tensor:
        assert self.chosen is not None and self.selection is not None
        if self.selection.merged is not None:
            hidden = hidden.clone()
            for row, kept, layout, merged in zip(
                range(len(hidden)), self.selection.kept, self.layouts, self.selection.merged, strict=True
            ):
                slots = layout.slots.to(hidden.device)[kept.to(hidden.device)]
                hidden[row, slots] = merged.to(hidden.device, hidden.dtype)
        return gather_rows(hidden, self.chosen.index)

    # -- what every later layer gets ---------------------------------------------------------------------------

    def _once(self, what: str, value: Any, make: Any) -> Any:
        """Layers share their arguments: gather each distinct one once a forward."""
        key = (what, id(value))
        if key not in self._gathered:
            self._keep_alive.append(value)  # or its id could be given to another object
            self._gathered[key] = make(value)
        return self._gathered[key]

    def _gather_ids(self, ids: Tensor) -> Tensor:
        assert self.chosen is not None and self.pruner is not None
        if self.pruner.positions == "compact":
            start = ids.expand(len(self.valid), -1).gather(1, self.valid.to(ids.device).int().argmax(1, keepdim=True))
            order = self.chosen.real.to(ids.device).cumsum(1) - 1
            return (start + order).clamp(min=0)
        return gather_positions(ids, self.chosen.index)

    def _positions(self, kwargs: dict[str, Any], hidden: Tensor) -> Any:
        assert self.chosen is not None and self.pruner is not None
        embeddings = kwargs["position_embeddings"]
        if self.pruner.positions == "compact":
            ids = self._once("ids", kwargs["position_ids"], self._gather_ids)
            return self._once("rotary", embeddings, lambda _: rotary(self.text_model, hidden, ids))
        index = self.chosen.index
        return self._once("rotary", embeddings, lambda pair: tuple(gather_rows(part, index) for part in pair))

    def _mask(self, i: int, mask: Any, hidden: Tensor, cache: Any) -> Any:
        chosen = self.chosen
        assert chosen is not None
        columns = chosen.index.shape[1]
        if cache is not None and i < len(cache.layers):
            columns = max(columns, int(cache.get_mask_sizes(columns, i)[0]))
        if mask is None and not chosen.ragged:
            return None
        if isinstance(mask, Tensor) and mask.dim() == 4:
            return self._once(f"mask{columns}", mask, lambda full: gather_mask(full, chosen, columns))
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return self._once("mask", mask, lambda full: gather_positions(full, chosen.index) * chosen.real)
        if mask is not None and self.family.bidirectional:
            raise VlmpruneError(
                f"Pruning {self.family.model_type!r} with the attention mask type {type(mask).__name__} is not "
                "supported; load the model with attn_implementation='sdpa'."
            )
        # No padding before, but rows of different lengths now. The all-ones mask matters: without one, the gaps in the
        # position ids would be taken for packed sequences.
        return self._once(
            "built",
            mask,
            lambda _: create_causal_mask(
                config=self.text_model.config,
                inputs_embeds=hidden,
                attention_mask=chosen.real,
                past_key_values=cache,
                layer_idx=i,
            ),
        )

    # -- DeepStack ---------------------------------------------------------------------------------------------

    def add_deepstack(self, i: int, hidden: Tensor) -> Tensor:
        """Add the visual features of level i to the visual rows of a layer's output, compacted or not."""
        assert self.deepstack is not None
        visual, levels = self.deepstack
        visual = visual.to(hidden.device)
        ordinal = (visual.flatten().cumsum(0) - 1).view_as(visual)  # features are in the order of the visual tokens
        if i >= self.layer and self.chosen is not None:
            chosen = self.chosen.to(hidden.device)
            ordinal = torch.gather(ordinal, 1, chosen.index)
            visual = torch.gather(visual, 1, chosen.index) & chosen.real
        hidden = hidden.clone()
        hidden[visual] = hidden[visual] + levels[i].to(hidden.device, hidden.dtype)[ordinal[visual]]
        return hidden


class CrossPrefill(Prefill):
    """A prompt of a family whose text rows attend to the image in cross-attention layers: its keys are gathered.

    `columns`: how many keys those layers have unpruned, padding tiles included.
    """

    columns = 0
    mask: Tensor | None = None

    def _choose(self, hidden: Tensor, cache: Any) -> None:
        self.selection = self._select(hidden)
        if not self.drops:
            return
        self.chosen = self._compaction(torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device))
        if self.chosen.ragged and self.mask is None:
            raise VlmpruneError(
                "A batch of images of different sizes needs the processor's cross_attention_mask; pass everything it "
                "returns."
            )
        if getattr(cache, "is_compileable", False):
            raise VlmpruneError(
                "A static cache has room for exactly all keys of the image, so a pruned prompt with cross attention "
                "cannot fill it; use the default cache instead of cache_implementation='static'."
            )
        if cache is not None:
            length, columns = self.valid.shape[1], self.chosen.columns
            remember(cache, PrunedPrompt(self.layer, length, self.valid, self.valid, True, cross_columns=columns))

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        states = kwargs.get("cross_attention_states")
        if states is None or i not in self.cross_layers:
            return None
        states = states.reshape(len(self.layouts), -1, states.shape[-1])
        self.columns = states.shape[1]
        if self.pruner is None or i < self.layer:
            return None
        self.mask = kwargs.get("cross_attention_mask")
        if self.selection is None:
            self._choose(states, kwargs.get("past_key_values"))
        if self.chosen is None:
            return None
        new = dict(kwargs)
        new["cross_attention_states"] = self._compact(states)
        columns = self.chosen.columns
        new["cross_attention_mask"] = self._once("mask", self.mask, lambda mask: cross_mask(mask, columns))
        return args, new

    @property
    def cross_layers(self) -> list[int]:
        return self.text_model.config.cross_attention_layers


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
        self.cache: Any = None
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        self._built: dict[str, Any] = {}  # what the layers of a step share, made by the first that needs it

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if i < self.state.layer:
            return None
        hidden: Tensor = args[0]
        new = dict(kwargs)
        if self.state.cross_columns is not None:
            if (mask := kwargs.get("cross_attention_mask")) is None:
                return None
            if "cross" not in self._built:
                self._built["cross"] = cross_mask(mask, self.state.rows(len(hidden)).cross_columns)  # type: ignore[arg-type]  # checked above
            new["cross_attention_mask"] = self._built["cross"]
            return args, new
        sliding = is_sliding(self.text_model, i)
        kind = "sliding" if sliding else "full"
        if kind not in self._built:
            self._built[kind] = self._mask(i, sliding, hidden, kwargs["past_key_values"])
        new["attention_mask"] = self._built[kind]
        if self.state.shift is not None:
            if "positions" not in self._built:
                ids = kwargs["position_ids"] - self.state.rows(len(hidden)).shift[:, None]  # type: ignore[index]  # checked above
                self._built["positions"] = ids, rotary(self.text_model, hidden, ids)
            new["position_ids"], new["position_embeddings"] = self._built["positions"]
        return args, new

    def _mask(self, i: int, sliding: bool, hidden: Tensor, cache: Any) -> Any:
        """The mask over C + later entries; the model's own was sized for S, or for the first layer."""
        state = self.state.rows(hidden.shape[0])
        steps = hidden.shape[1]
        later = physical_length(cache, i) - state.slots.shape[1] + steps
        valid = later_valid(state, self.mask, later)
        if steps > 1:  # a later turn may bring padding of its own; single steps never do
            self.state.all_valid = self.state.all_valid and bool(valid.all())
        window = None
        if sliding:
            window = self._window(state, later, steps, i, cache)
        return create_causal_mask(
            config=self.text_model.config,
            inputs_embeds=hidden,
            attention_mask=None if self.state.all_valid else valid.to(hidden.device),
            past_key_values=cache,
            and_mask_function=window,
            layer_idx=i,
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
