"""What happens inside a prompt's forward of the decoder layers; `decode.py` has the steps after it.

Both offer `enter(i, args, kwargs)`, called by a pre-hook on decoder layer i, which returns the layer's new arguments or
None to leave them. Shapes: B batch, S sequence, C sequence after compaction, D width.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.masks import Sizes, check_hides, check_scale, check_window, own_mask, still_seen, take_mask
from ..attention.probe import look_ahead
from ..errors import VlmpruneError
from ..flow.compact import Compaction
from ..flow.prompt_state import PromptState
from ..flow.stage import Stage, merged
from ..hf.arguments import cache_in
from ..hf.cache_state import layer_kind, physical_sizes
from ..hf.compatibility import CACHE_NAMES
from ..ops.gather import compact, gather_along, gather_positions, gather_rows, one_stream, sequence_axis
from .cache_cut import CacheCutter
from .decide import Decider
from .decode import Arguments
from .deepstack import DeepStack
from .layer_before import LayerBefore
from .setup import Setup

# Arguments of a layer that are cut in a way of their own, or hold no rows of the sequence.
_OWN_WAY = {"position_embeddings", "position_ids", "attention_mask", *CACHE_NAMES}
_OWN_WAY |= {"shared_kv_states", "prev_topk_indices"}


class Prefill:
    """A prompt: compacted at each of the pruner's layers, its arguments gathered for those after them.

    `decider` decides at these layers, None where nothing is dropped. `deepstack`: the features to add at some
    layers, where the language model leaves that to us.
    """

    def __init__(
        self, setup: Setup, state: PromptState, decider: Decider | None, deepstack: DeepStack | None = None
    ) -> None:
        self.setup, self.state, self.decider, self.deepstack = setup, state, decider, deepstack
        self._gathered: dict[tuple[str, int, int], tuple[Any, Any]] = {}
        self._lengths: dict[int, int] = {}  # how many keys a layer gets
        self._before = LayerBefore()
        self._shares = True  # what it makes of a layer's arguments with the layers after it
        self._again: Prefill | None = None
        self.spared: tuple[int, int] | None = None  # as `last_rows` of the state, had the model been let
        self.cutter: CacheCutter | None = None

    @property
    def again(self) -> "Prefill":
        """The same for layers that gradient checkpointing runs a second time. It keeps none of their arguments: it is
        found by one of them, which it would keep alive, and with it all that was made of every training step."""
        if self._shares and self._again is None:
            self._again = copy.copy(self)
            self._again._gathered, self._again._before, self._again._shares = {}, LayerBefore(), False
        return self._again or self

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        hidden, *unnamed = args
        self.state.cache = cache_in(kwargs)
        if i == 0 and self.cutter is not None:
            self.cutter.check(self.state.cache)
        decider, stage = self.decider, self.state.stage_at(i)
        follows = decider is not None and i not in decider.layers and not unnamed
        if follows and self._before.same(self._kind(i, stage), hidden, kwargs):
            made = self._before.made
            return None if made is None else ((hidden,), made)
        few = self._few(i, hidden)
        if decider is None:
            return None
        if i == 0:
            decider.ask_query_positions(self.stream(i, hidden))
        if i in decider.layers:
            # Decided already when gradient checkpointing runs the layer a second time.
            if stage is None or stage.layer != i:
                if few:
                    raise VlmpruneError(
                        f"Layer {i}, before which tokens are dropped, is given only the last {few} rows of the prompt "
                        "by the language model; call the whole model, or leave logits_to_keep out."
                    )
                if decider.pruner.reads_own_layer:
                    self._read_ahead(i, (hidden, *unnamed), self._given(i, stage, hidden, kwargs), decider)
                stage = decider.decide(i, self.stream(i, hidden))
            if stage.chosen is not None:
                hidden = self._compact(stage, stage.chosen, hidden, kwargs)
        if stage is None or stage.chosen is None:
            if i in self.setup.lent:
                self._keys(i, self._rows(i))
            return None
        setup = self.setup
        check_scale(setup.attentions[i], self.state.valid.shape[1])
        more = tuple(self._along("argument", stage, stage.chosen, value) for value in unnamed)
        made = self._given(i, stage, hidden, kwargs)
        if self._shares:
            self._before.keep(self._kind(i, stage), hidden, kwargs, made)
        return (hidden, *more), made

    def _kind(self, i: int, stage: Stage | None) -> tuple[Any, ...]:
        """What the arguments of a layer depend on besides those that it is given."""
        return self.setup.kinds[i], None if stage is None else stage.layer, layer_kind(self.state.cache, i)

    def stream(self, i: int, hidden: Tensor) -> Tensor:
        """Hidden states [B, S, D] that enter a layer; of a model that keeps several streams of them the first."""
        if hidden.dim() == 3:
            return hidden
        batch, rows = len(self.state.valid), self._rows(i - 1)
        return one_stream(hidden, batch, self._rows(i) if sequence_axis(hidden, batch, rows) is None else rows)

    def _rows(self, i: int) -> int:
        """Of the sequence that leaves a layer."""
        stage = self.state.stage_at(i)
        chosen = None if stage is None else stage.on_host
        return self.state.valid.shape[1] if chosen is None else chosen.index.shape[1]

    def _few(self, i: int, hidden: Tensor) -> int:
        """How many rows a layer is given where the language model runs only the last ones from there on, else 0.

        Gemma 4 does so before the first layer that uses another's keys, by `logits_to_keep`.
        """
        if hidden.dim() != 3 or hidden.shape[1] >= self._rows(i - 1):
            return 0
        few, length = hidden.shape[1], self.state.valid.shape[1]
        stage = self.state.stage_at(i - 1)
        chosen = None if stage is None else stage.on_host
        if chosen is not None and not bool((chosen.columns[:, -few:] == torch.arange(length - few, length)).all()):
            raise VlmpruneError(
                f"Layer {i} is given the last {few} rows of the prompt, some of which are padding or were dropped; "
                "leave logits_to_keep out."
            )
        if self.state.last_rows is None:
            self.state.last_rows = (i, few)
        return few

    def _given(self, i: int, stage: Stage | None, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments of the rows that the stage has left, which `hidden` holds; or the last of them, where
        the language model has cut its arguments already."""
        if stage is None or stage.chosen is None:
            return kwargs
        mask = self._mask(i, stage, stage.chosen, kwargs.get("attention_mask"), hidden)
        if _last(stage.chosen, hidden):
            return {**kwargs, "attention_mask": mask}
        new = {
            name: value if name in _OWN_WAY else self._along(name, stage, stage.chosen, value)
            for name, value in kwargs.items()
        }
        if kwargs.get("position_embeddings") is not None:
            new["position_embeddings"] = self._cos_sin(stage, stage.chosen, kwargs, hidden)
        if kwargs.get("position_ids") is not None:
            new["position_ids"] = self._position_ids(stage, stage.chosen, kwargs)
            if i in self.setup.counted:
                new["position_ids"] = torch.arange(stage.chosen.index.shape[1], device=hidden.device)[None]
        new["attention_mask"] = mask
        return new

    def _read_ahead(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any], decider: Decider) -> None:
        """Read what the layer would attend to if nothing were dropped: its own code runs up to its attention call."""
        layer = self.setup.text.layers[i]
        layer = getattr(layer, "_orig_mod", layer)  # of a compiled one
        alone = {name: None if value is self.state.cache else value for name, value in kwargs.items()}
        # Its forward: hooks on it, ours among them, are for the run itself.
        call = look_ahead(self.setup.family.attention(layer), partial(layer.forward, *args, **alone))
        decider.observe(call, layer=i)

    def _compact(self, stage: Stage, chosen: Compaction, hidden: Tensor, beside: dict[str, Any]) -> Tensor:
        """The kept rows of the hidden states; on a GPU the same launch gathers what lies beside them."""
        cos_sin, ids = beside.get("position_embeddings"), beside.get("position_ids")
        if self.state.reindexed:  # both are computed for the new positions
            cos_sin = ids = None
        # Llama 4's is one complex tensor: gathered later.
        pair = tuple(cos_sin) if isinstance(cos_sin, tuple | list) else ()
        if hidden.dim() > 3:
            return self._compact_streams(stage, hidden)
        hidden, made_pair, made_ids = compact(
            merged(hidden, stage), chosen.index, inner=stage.inner, cos_sin=pair, position_ids=ids
        )
        if pair:
            self._once("cos_sin", stage, cos_sin, lambda: made_pair)
        if ids is not None:
            self._once("ids", stage, ids, lambda: made_ids)
        return hidden

    def _compact_streams(self, stage: Stage, hidden: Tensor) -> Tensor:
        """The kept rows of the hidden states of a model that keeps several streams of them."""
        if stage.merged is not None:
            name = type(self.setup.pruner).__name__
            raise VlmpruneError(
                f"{name} merges tokens into new hidden states, of which this language model keeps several a token; use "
                "a method that only drops tokens."
            )
        assert stage.inner is not None, "something was dropped"
        kept: Tensor = gather_along(hidden, stage.inner, len(stage.inner), self._rows(stage.layer - 1))
        return kept

    # -- what every later layer gets ---------------------------------------------------------------------------

    def _once(self, what: str, stage: Stage, value: Any, make: Callable[[], Any]) -> Any:
        """Layers share their arguments: gather each distinct one once per stage."""
        key = (what, stage.layer, id(value))
        found = self._gathered.get(key) or (value, make())
        if self._shares:
            self._gathered[key] = found  # the value is kept alive, or its id could be given to another object
        return found[1]

    def _along(self, name: str, stage: Stage, chosen: Compaction, value: Any) -> Any:
        """What a layer is given for each token, cut to the kept rows; anything else as it is."""
        batch, length = self.state.valid.shape
        if not isinstance(value, Tensor | tuple | list | dict):
            return value
        return self._once(name, stage, value, lambda: gather_along(value, chosen.index, batch, length))

    def _position_ids(self, stage: Stage, chosen: Compaction, kwargs: dict[str, Any]) -> Any:
        ids = kwargs["position_ids"]

        def gathered() -> Tensor:
            if not self.state.reindexed:
                return gather_positions(ids, chosen.index)
            first = self.state.valid.to(ids.device).int().argmax(1, keepdim=True)
            start = ids.expand(len(first), -1).gather(1, first)
            order = chosen.real.to(ids.device).cumsum(1) - 1
            return (start + order).clamp(min=0)

        return self._once("ids", stage, ids, gathered)

    def _cos_sin(self, stage: Stage, chosen: Compaction, kwargs: dict[str, Any], hidden: Tensor) -> Any:
        """Rotary embeddings of the kept positions."""
        whole = kwargs["position_embeddings"]

        def gathered() -> Any:
            if self.state.reindexed:
                return self.setup.text.rotary_emb(hidden, self._position_ids(stage, chosen, kwargs))
            if isinstance(whole, Tensor):
                return gather_rows(whole, chosen.index)
            return tuple(gather_rows(part, chosen.index) for part in whole)

        return self._once("cos_sin", stage, whole, gathered)

    def _keys(self, i: int, rows: int) -> int:
        """How many keys a layer gets that writes `rows` of them; asked before it runs, and for layers that use its."""
        source = self.setup.sources[i]
        if source == i:
            length, offset = (rows, 0) if self.state.cache is None else physical_sizes(self.state.cache, rows, i)
            assert offset == 0, "a prompt's cache was empty"
            self._lengths[i] = length
        return self._lengths[source]

    def _mask(self, i: int, stage: Stage, chosen: Compaction, mask: Any, hidden: Tensor) -> Any:
        config, window = self.setup.text.config, self.setup.windows[i]
        if self.setup.attentions[i] is None:
            return self._row_mask(stage, chosen, mask)
        if self.state.held_at(i) is not stage:
            return self._mask_of_lent(i, stage, chosen, mask, hidden)
        rows, few = chosen.index.shape[1], _last(chosen, hidden)
        length = self._keys(i, rows)
        sizes = Sizes(length, 0, rows - few if few else 0)
        like = hidden if hidden.dim() == 3 else hidden.new_empty(len(chosen.index), rows, 0)
        if self.state.reindexed and window is not None:
            # Re-indexed tokens count a window in the shortened sequence, as a model that was given it would.
            valid = chosen.real if chosen.ragged else None
            name = f"own mask {length} {window}"
            return self._once(name, stage, mask, lambda: own_mask(config, like, valid, sizes, i, window))
        check_window(config, window, self.state.valid.shape[1])
        if mask is not None:
            hides = chosen.ragged or length > rows
            columns = nn.functional.pad(chosen.columns, (0, length - rows), value=-1)
            index = None if few else chosen.index
            return self._once(f"mask {length}", stage, mask, lambda: take_mask(mask, index, columns, hides))
        if not chosen.ragged:
            return None
        # No padding before, but rows of different lengths now. The all-ones mask matters: without one, the gaps in the
        # position ids would be taken for packed sequences.
        name = f"built {length} {few}"
        return self._once(name, stage, mask, lambda: own_mask(config, like, chosen.real, sizes, i, None))

    def _row_mask(self, stage: Stage, chosen: Compaction, mask: Any) -> Any:
        """Of a layer that does not attend: which rows are real, [B, C], since a recurrence runs over all that it is not
        told to leave out. It is None where all are, and one without a memory ignores it."""
        if mask is not None:
            rows, columns, hides = chosen.index, chosen.columns, chosen.ragged
            return self._once("row mask", stage, mask, lambda: take_mask(mask, rows, columns, hides))
        return self._once("real rows", stage, mask, chosen.real.long) if chosen.ragged else None

    def _mask_of_lent(self, i: int, stage: Stage, chosen: Compaction, mask: Any, hidden: Tensor) -> Any:
        """Of a layer that uses keys from before its stage: they are all there, those of dropped tokens are hidden."""
        source, config = self.setup.sources[i], self.setup.text.config
        check_hides(config, i, source)
        held, (batch, whole) = self.state.held_at(i), self.state.valid.shape
        length, few = self._keys(i, 0), _last(chosen, hidden)

        def made() -> Any:
            if held is None or held.chosen is None:
                columns = torch.arange(whole, device=hidden.device).expand(batch, -1)
            else:
                columns = held.chosen.columns
            columns = nn.functional.pad(columns, (0, length - columns.shape[1]), value=-1)
            seen, full, index = still_seen(columns, chosen.columns, whole), mask, None if few else chosen.index
            if full is None:
                kept = still_seen(torch.arange(whole, device=hidden.device).expand(batch, -1), chosen.columns, whole)
                like = hidden.new_empty(batch, whole, 0)
                full = own_mask(config, like, kept >= 0, Sizes(whole, 0, 0), i, None)
                index = chosen.index[:, -few:]  # all of them where `few` is 0
            return take_mask(full, index, seen, True)

        return self._once(f"lent {source} {length} {few}", stage, mask, made)


def _last(chosen: Compaction, hidden: Tensor) -> int:
    """How many rows hidden states have of those that are left, 0 for all."""
    return hidden.shape[1] if hidden.dim() == 3 and hidden.shape[1] < chosen.index.shape[1] else 0
