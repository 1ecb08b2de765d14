"""What happens inside a prompt's forward of the decoder layers; `decode.py` has the steps after it.

Both offer `enter(i, args, kwargs)`, called by a pre-hook on decoder layer i, which returns the layer's new arguments or
None to leave them. Shapes: B batch, S sequence, C sequence after compaction, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..attention.masks import Sizes, check_scale, check_window, own_mask, take_mask
from ..attention.probe import look_ahead
from ..flow.compact import Compaction
from ..flow.prompt_state import PromptState
from ..flow.stage import Stage, merged
from ..hf.arguments import cache_in
from ..hf.cache_state import physical_sizes
from ..ops.gather import compact, gather_positions, gather_rows
from .decide import Decider
from .decode import Arguments
from .deepstack import DeepStack
from .setup import Setup


class Prefill:
    """A prompt: compacted at each of the pruner's layers, its arguments gathered for those after them.

    `decider` decides at these layers, None where nothing is dropped. `deepstack`: the features to add after the first
    layers, where the language model leaves that to us.
    """

    def __init__(
        self, setup: Setup, state: PromptState, decider: Decider | None, deepstack: DeepStack | None = None
    ) -> None:
        self.setup, self.state, self.decider, self.deepstack = setup, state, decider, deepstack
        self._gathered: dict[tuple[str, int, int], tuple[Any, Any]] = {}

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        self.state.cache = cache_in(kwargs)
        hidden: Tensor = args[0]
        decider = self.decider
        if decider is None:
            return None
        if i == 0:
            decider.ask_query_positions(hidden)
        stage = self.state.stage_at(i)
        if i in decider.layers:
            # Decided already when gradient checkpointing runs the layer a second time.
            if stage is None or stage.layer != i:
                if decider.pruner.reads_own_layer:
                    self._read_ahead(i, args, self._given(i, stage, hidden, kwargs), decider)
                stage = decider.decide(i, hidden)
            if stage.chosen is not None:
                hidden = self._compact(stage, stage.chosen, hidden, kwargs)
        if stage is None or stage.chosen is None:
            return None
        setup = self.setup
        check_scale(setup.family.attention(setup.text.layers[i]), self.state.valid.shape[1])
        return (hidden, *args[1:]), self._given(i, stage, hidden, kwargs)

    def _given(self, i: int, stage: Stage | None, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's arguments of the rows that the stage has left, which `hidden` holds."""
        if stage is None or stage.chosen is None:
            return kwargs
        new = dict(kwargs)
        new["position_embeddings"] = self._cos_sin(stage, stage.chosen, kwargs, hidden)
        if kwargs.get("position_ids") is not None:
            new["position_ids"] = self._position_ids(stage, stage.chosen, kwargs)
        new["attention_mask"] = self._mask(i, stage, stage.chosen, kwargs.get("attention_mask"), hidden)
        return new

    def _read_ahead(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any], decider: Decider) -> None:
        """Read what the layer would attend to if nothing were dropped: its own code runs up to its attention call."""
        layer = self.setup.text.layers[i]
        layer = getattr(layer, "_orig_mod", layer)  # of a compiled one
        alone = {name: None if value is self.state.cache else value for name, value in kwargs.items()}
        # Its forward: hooks on it, ours among them, are for the run itself.
        decider.observe(look_ahead(self.setup.family.attention(layer), partial(layer.forward, *args, **alone)))

    def _compact(self, stage: Stage, chosen: Compaction, hidden: Tensor, beside: dict[str, Any]) -> Tensor:
        """The kept rows of the hidden states; on a GPU the same launch gathers what lies beside them."""
        cos_sin, ids = beside.get("position_embeddings"), beside.get("position_ids")
        if self.state.reindexed:  # both are computed for the new positions
            cos_sin = ids = None
        # Llama 4's is one complex tensor: gathered later.
        pair = tuple(cos_sin) if isinstance(cos_sin, tuple | list) else ()
        hidden, made_pair, made_ids = compact(
            merged(hidden, stage), chosen.index, inner=stage.inner, cos_sin=pair, position_ids=ids
        )
        if pair:
            self._once("cos_sin", stage, cos_sin, lambda: made_pair)
        if ids is not None:
            self._once("ids", stage, ids, lambda: made_ids)
        return hidden

    # -- what every later layer gets ---------------------------------------------------------------------------

    def _once(self, what: str, stage: Stage, value: Any, make: Callable[[], Any]) -> Any:
        """Layers share their arguments: gather each distinct one once per stage."""
        key = (what, stage.layer, id(value))
        if key not in self._gathered:
            self._gathered[key] = value, make()  # kept alive, or its id could be given to another object
        return self._gathered[key][1]

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

    def _mask(self, i: int, stage: Stage, chosen: Compaction, mask: Any, hidden: Tensor) -> Any:
        config, window, cache = self.setup.text.config, self.setup.windows[i], self.state.cache
        rows = chosen.index.shape[1]
        length, offset = (rows, 0) if cache is None else physical_sizes(cache, rows, i)
        assert offset == 0, "a prompt's cache was empty"
        sizes = Sizes(length, 0, 0)
        if self.state.reindexed and window is not None:
            # Re-indexed tokens count a window in the shortened sequence, as a model that was given it would.
            valid = chosen.real if chosen.ragged else None
            name = f"own mask {length} {window}"
            return self._once(name, stage, mask, lambda: own_mask(config, hidden, valid, sizes, i, window))
        check_window(config, window, self.state.valid.shape[1])
        if mask is not None:
            hides = chosen.ragged or length > rows
            columns = nn.functional.pad(chosen.columns, (0, length - rows), value=-1)
            return self._once(f"mask {length}", stage, mask, lambda: take_mask(mask, chosen.index, columns, hides))
        if not chosen.ragged:
            return None
        # No padding before, but rows of different lengths now. The all-ones mask matters: without one, the gaps in the
        # position ids would be taken for packed sequences.
        return self._once(f"built {length}", stage, mask, lambda: own_mask(config, hidden, chosen.real, sizes, i, None))
