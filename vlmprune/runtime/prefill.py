"""What happens inside a prompt's forward of the decoder layers; `decode.py` has the steps after it.

Both offer `enter(i, args, kwargs)`, called by a pre-hook on decoder layer i, which returns the layer's new arguments or
None to leave them. Shapes: B batch, S sequence, C sequence after compaction, V visual tokens, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.masks import Sizes, Window, check_window, own_mask, take_mask
from ..attention.probe import AttentionCall
from ..attention.sink_observer import VisualSinkWatcher
from ..errors import VlmpruneError
from ..families import Family
from ..flow.compact import compaction, gather_positions, gather_rows, keep_mask
from ..flow.locate import last_valid
from ..flow.prompt_state import PromptState
from ..flow.returned import checked_query_positions, checked_selection, readable
from ..flow.select import Selection, with_last
from ..flow.stage import Stage, merged
from ..hf.arguments import cache_in, host_copies
from ..hf.cache_state import PrunedPrompt, physical_sizes, remember
from ..methods.base import Pruner, PruningContext
from ..ops import compact
from .decode import Arguments, rotary


class Prefill:
    """A prompt: scored, selected and compacted at each of the pruner's layers, gathered in those after it.

    `state` is what is known of the prompt; `windows` are those of every decoder layer. `sinks` finds visual sinks for
    pruners that leave them out. `deepstack`: where visual tokens are [B, S], and features that are added to them.
    """

    def __init__(
        self,
        state: PromptState,
        pruner: Pruner | None,
        layers: Sequence[int],
        family: Family,
        text_model: Any,
        windows: Sequence[Window | None],
        sinks: VisualSinkWatcher | None = None,
        deepstack: tuple[Tensor, list[Tensor]] | None = None,
    ) -> None:
        self.state, self.pruner, self.layers, self.family = state, pruner, tuple(layers), family
        self.text_model, self.windows, self.sinks, self.deepstack = text_model, windows, sinks, deepstack
        self._gathered: dict[tuple[str, int, int], Any] = {}
        self._keep_alive: list[Any] = []

    # -- reading the layer before ------------------------------------------------------------------------------

    def observe(self, call: AttentionCall, output: Tensor) -> None:
        """Attention of the reading rows in the probed layer, mean over heads [B, S or cross states], and keys.

        The last prompt token reads, or the text tokens that the method named.
        """
        assert self.pruner is not None
        cross = self.family.cross_attention
        if self.pruner.reads_keys:
            # A static cache has room for more than the prompt; keys of cross attention are no positions of it.
            length = call.key.shape[2] if cross else self.state.length
            self.state.keys = call.key.detach()[:, :, :length]
        where = self.state.inverse()
        if self.state.query_positions is None:
            rows = last_valid(self.state.prompt_valid)[:, None]
            rows = rows if cross else where.gather(1, rows)
            self.state.attention = call.received(rows, causal=not cross) / call.query.shape[1]
            return
        queries = self.state.query_positions
        longest = max(len(own) for own in queries)
        rows = torch.stack([where[row, own][torch.arange(longest) % len(own)] for row, own in enumerate(queries)])
        # Rows are repeated to equal length, so that none reads padding, which is NaN; the repeats do not count.
        counts = torch.stack([torch.arange(longest) < len(own) for own in queries])
        self.state.attention = call.received(rows, counts.float()) / call.query.shape[1]

    # -- the flow ----------------------------------------------------------------------------------------------

    def _prompt(self, layer: int, hidden: Tensor) -> PruningContext:
        """What the pruner sees: the layouts as earlier stages have left them."""
        state = self.state
        layouts, ids, valid = state.left()
        return PruningContext(
            layouts=layouts,
            hidden=hidden,
            input_ids=ids,
            valid=valid,
            layer=layer,
            attention=state.attention,
            importance=state.importance,
            sinks=self.sinks.among(hidden, layouts, layer) if self.sinks else None,
            keys=state.keys,
            vision=state.vision,
            stage=len(state.stages),
            stages=len(self.layers),
            unpruned=state.layouts,
        )

    def _select(self, prompt: PruningContext) -> Selection:
        assert self.pruner is not None
        selection = self.pruner.select(prompt)  # not under no_grad: merged states carry the gradient
        kept = selection.kept if isinstance(selection, Selection) else None
        if isinstance(kept, list) and kept and all(isinstance(some, Tensor) and readable(some) for some in kept):
            selection = Selection(host_copies(kept), selection.merged)
        name, width = type(self.pruner).__name__, prompt.hidden.shape[-1]
        selection = checked_selection(selection, prompt.layouts, width, name)
        return with_last(selection, prompt.layouts, prompt.hidden)

    def _decide(self, layer: int, hidden: Tensor) -> Stage:
        """Run the pruner on what is left, and turn its choice into a gather index over the sequence."""
        before = self.state.stages[-1] if self.state.stages else None
        prompt = self._prompt(layer, hidden)
        selection = self._select(prompt)
        kept = selection.kept
        if before is not None:
            kept = [old[new] for old, new in zip(before.kept, kept, strict=True)]
        stage = Stage(layer, kept)
        if not self.state.drops(kept):  # every layer runs untouched, bit by bit
            return stage
        stage.merged = selection.merged
        stage.places = [layout.slots[new] for layout, new in zip(prompt.layouts, selection.kept, strict=True)]
        eligible = self._eligible(hidden)
        stage.on_host = compaction(keep_mask(eligible, [layout.slots for layout in self.state.layouts], kept))
        stage.chosen = stage.on_host.to(hidden.device)
        stage.inner = stage.chosen.index
        if self.state.chosen is not None:
            stage.inner = self.state.inverse().gather(1, stage.on_host.index).to(hidden.device)
        return stage

    def _eligible(self, hidden: Tensor) -> Tensor:
        """Padding goes too, and rows are re-padded to the longest."""
        return self.state.valid

    def _state(self, stage: Stage) -> PrunedPrompt:
        assert stage.chosen is not None and self.pruner is not None
        dropped = torch.tensor(
            [layout.count - len(kept) for layout, kept in zip(self.state.layouts, stage.kept, strict=True)]
        )
        shift = dropped.to(stage.chosen.index.device) if self.pruner.positions == "compact" else None
        # What comes after the prompt are candidates: `generate` takes those it rejects from the cache again.
        rows = stage.chosen.index.shape[1] - (self.state.valid.shape[1] - self.state.prompt_length)
        columns = stage.chosen.columns[:, :rows]
        return PrunedPrompt(stage.layer, self.state.prompt_length, columns, stage.chosen.ragged, shift)

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        cache = self.state.cache = cache_in(kwargs)
        if self.pruner is None:
            return None
        hidden: Tensor = args[0]
        if i == 0 and self.state.query_positions is None:
            name = type(self.pruner).__name__
            named = self.pruner.query_positions(self._prompt(0, hidden))
            self.state.query_positions = checked_query_positions(named, self.state.valid, name)
        if i < self.layers[0]:
            return None
        stage = self.state.stage_at(i)
        if i in self.layers:
            # Decided already when gradient checkpointing runs the layer a second time.
            if stage is None or stage.layer != i:
                stage = self._decide(i, hidden)
                self.state.stages.append(stage)
                if cache is not None and stage.chosen is not None:
                    remember(cache, self._state(stage))
            if stage.chosen is not None:
                hidden = self._compact(stage, hidden, kwargs)
        if stage is None or stage.chosen is None:
            return None
        new = dict(kwargs)
        new["position_embeddings"] = self._positions(stage, kwargs, hidden)
        if kwargs.get("position_ids") is not None:
            new["position_ids"] = self._once(
                "ids", stage, kwargs["position_ids"], lambda ids: self._gather_ids(stage, ids)
            )
        new["attention_mask"] = self._mask(i, stage, kwargs.get("attention_mask"), hidden, cache)
        return (hidden, *args[1:]), new

    def _compact(self, stage: Stage, hidden: Tensor, beside: dict[str, Any]) -> Tensor:
        """The kept rows of the hidden states; on a GPU the same launch gathers what lies beside them."""
        assert stage.chosen is not None and self.pruner is not None
        rotary, ids, mask = map(beside.get, ("position_embeddings", "position_ids", "attention_mask"))
        if self.pruner.positions == "compact":  # re-indexed, they are made anew
            rotary = ids = None
        mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        rotary = rotary if isinstance(rotary, tuple | list) else None  # Llama 4's is one complex tensor: gathered later
        index, real, turns = stage.chosen.index, stage.chosen.real, tuple(rotary or ())
        rows = compact(merged(hidden, stage), index, real, inner=stage.inner, rotary=turns, positions=ids, mask=mask)
        made = {"rotary": (rotary, rows.rotary), "ids": (ids, rows.positions), "mask": (mask, rows.mask)}
        for what, (value, result) in made.items():
            if value is not None:
                self._once(what, stage, value, lambda _, result=result: result)
        return rows.hidden

    # -- what every later layer gets ---------------------------------------------------------------------------

    def _once(self, what: str, stage: Stage, value: Any, make: Any) -> Any:
        """Layers share their arguments: gather each distinct one once a stage."""
        key = (what, stage.layer, id(value))
        if key not in self._gathered:
            self._keep_alive.append(value)  # or its id could be given to another object
            self._gathered[key] = make(value)
        return self._gathered[key]

    def _gather_ids(self, stage: Stage, ids: Tensor) -> Tensor:
        assert stage.chosen is not None and self.pruner is not None
        if self.pruner.positions == "compact":
            first = self.state.valid.to(ids.device).int().argmax(1, keepdim=True)
            start = ids.expand(len(first), -1).gather(1, first)
            order = stage.chosen.real.to(ids.device).cumsum(1) - 1
            return (start + order).clamp(min=0)
        return gather_positions(ids, stage.chosen.index)

    def _positions(self, stage: Stage, kwargs: dict[str, Any], hidden: Tensor) -> Any:
        assert stage.chosen is not None and self.pruner is not None
        embeddings = kwargs["position_embeddings"]
        if self.pruner.positions == "compact":
            ids = self._once("ids", stage, kwargs["position_ids"], lambda ids: self._gather_ids(stage, ids))
            return self._once("rotary", stage, embeddings, lambda _: rotary(self.text_model, hidden, ids))
        index = stage.chosen.index
        if isinstance(embeddings, Tensor):
            return self._once("rotary", stage, embeddings, lambda whole: gather_rows(whole, index))
        return self._once("rotary", stage, embeddings, lambda pair: tuple(gather_rows(part, index) for part in pair))

    def _mask(self, i: int, stage: Stage, mask: Any, hidden: Tensor, cache: Any) -> Any:
        chosen, config, window = stage.chosen, self.text_model.config, self.windows[i]
        assert chosen is not None and self.pruner is not None
        rows = chosen.index.shape[1]
        length, offset = (rows, 0) if cache is None else physical_sizes(cache, rows, i)
        assert offset == 0, "a prompt's cache was empty"
        if self.pruner.positions == "compact" and window is not None:
            # Re-indexed tokens count a window in the shortened sequence, as a model that was given it would.
            valid = chosen.real if chosen.ragged else None
            make = partial(own_mask, config, hidden, valid, Sizes(length, 0, 0), i, window)
            return self._once(f"own mask {length} {window}", stage, mask, lambda _: make())
        check_window(config, window, self.state.valid.shape[1])
        if mask is not None:
            hides = chosen.ragged or length > rows
            columns = nn.functional.pad(chosen.columns, (0, length - rows), value=-1)
            make = partial(take_mask, rows=chosen.index, columns=columns, hides=hides)
            return self._once(f"mask {length}", stage, mask, make)
        if not chosen.ragged:
            return None
        # No padding before, but rows of different lengths now. The all-ones mask matters: without one, the gaps in the
        # position ids would be taken for packed sequences.
        make = partial(own_mask, config, hidden, chosen.real, Sizes(length, 0, 0), i, None)
        return self._once(f"built {length}", stage, mask, lambda _: make())

    # -- DeepStack ---------------------------------------------------------------------------------------------

    def add_deepstack(self, i: int, hidden: Tensor) -> Tensor:
        """Add the visual features of level i to the visual rows of a layer's output, compacted or not."""
        assert self.deepstack is not None
        visual, levels = self.deepstack
        visual = visual.to(hidden.device)
        ordinal = (visual.flatten().cumsum(0) - 1).view_as(visual)  # features are in the order of the visual tokens
        stage = self.state.stage_at(i)
        if stage is not None and stage.chosen is not None:
            chosen = stage.chosen.to(hidden.device)
            ordinal = torch.gather(ordinal, 1, chosen.index)
            visual = torch.gather(visual, 1, chosen.index) & chosen.real
        hidden = hidden.clone()
        hidden[visual] = hidden[visual] + levels[i].to(hidden.device, hidden.dtype)[ordinal[visual]]
        return hidden


class CrossPrefill(Prefill):
    """A prompt of a family whose text rows attend to the image in cross-attention layers: its keys are gathered.

    """

    mask: Tensor | None = None

    def _eligible(self, hidden: Tensor) -> Tensor:
        return torch.ones(hidden.shape[:2], dtype=torch.bool)

    def _choose(self, states: Tensor, cache: Any) -> Stage:
        (layer,) = self.layers
        stage = self._decide(layer, states)
        self.state.stages.append(stage)
        if stage.chosen is None:
            return stage
        if stage.chosen.ragged and self.mask is None:
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
            length, columns = self.state.valid.shape[1], stage.chosen.columns
            remember(cache, PrunedPrompt(layer, length, columns, stage.chosen.ragged, cross=True))
        return stage

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        cache = self.state.cache = cache_in(kwargs)
        states = kwargs.get("cross_attention_states")
        if states is None or i not in self.cross_layers:
            return None
        states = states.reshape(len(self.state.layouts), -1, states.shape[-1])
        self.state.cross_columns = states.shape[1]
        if self.pruner is None or i < self.layers[0]:
            return None
        self.mask = kwargs.get("cross_attention_mask")
        stage = self.state.stages[0] if self.state.stages else self._choose(states, cache)
        if stage.chosen is None:
            return None
        new = dict(kwargs)
        new["cross_attention_states"] = self._compact(stage, states, {})
        if self.mask is not None:
            make = partial(take_mask, rows=None, columns=stage.chosen.columns, hides=stage.chosen.ragged)
            new["cross_attention_mask"] = self._once("mask", stage, self.mask, make)
        return args, new

    @property
    def cross_layers(self) -> list[int]:
        return self.text_model.config.cross_attention_layers
