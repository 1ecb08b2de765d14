"""A method made ready for a model: where it drops tokens, whose attention is read, and whether the two fit at all."""

import inspect
from collections.abc import Sequence
from typing import Any

from ..accounting.flops import model_cost
from ..attention.masks import scaling
from ..attention.observer import AttentionObserver, check_observer
from ..attention.sink_observer import VisualSinkObserver
from ..attention.tower import TowerReader
from ..families import Family
from ..families.mechanisms import counts_keys
from ..flow.prompt_state import PromptState
from ..methods.base import Method, Pruner
from ..methods.combined import parts_of
from ..methods.kv.base import CacheMethod, CacheReader
from .decide import Decider
from .fit import (
    check_backbone,
    check_cache,
    check_fit,
    check_lent,
    check_positions,
    check_selecting,
    check_selection,
    drop_layers,
    read_layers,
)

_LAST_NORMS = ("norm", "norm_f", "embedding_norm")
# What a prompt's visual tokens are located by, where only embeddings get as far as the language model.
BROUGHT = ("input_ids", "pixel_values", "mm_encoder_outputs")


class Setup:
    """What a session knows of its model and method before any call, refused where they do not fit; the model is not
    touched.

    `base`, `text`: the base model and the language model. `attentions`: the attention module of each decoder layer,
    None of one that does not attend. `layers`: before which the pruner drops tokens. `read`: the layers whose attention
    or keys it reads. `observed`: the layers of each of the `observers`. `probed`: the attention modules of all of
    these. `counted`: layers whose position ids are places among their keys. `kinds`: of each decoder layer what its
    arguments depend on; layers of one kind that are given the same get the same. `tower`: reads the vision tower, where
    the pruner asks for it.
    """

    def __init__(self, model: Any, family: Family, method: Method, observers: Sequence[AttentionObserver]) -> None:
        self.model, self.family, self.method, self.observers = model, family, method, observers
        self.base: Any = family.base_model(model)
        self.text: Any = family.language_model(model)
        check_backbone(self.text, family)
        self.pruner = next((part for part in parts_of(method) if isinstance(part, Pruner)), None)
        self.attentions = [family.attention(layer) for layer in self.text.layers]
        self.cache_method = next((part for part in parts_of(method) if isinstance(part, CacheMethod)), None)
        self.layers = drop_layers(self.pruner, len(self.text.layers)) if self.pruner else (0,)
        self.cost = model_cost(family, model)
        self.windows = [layer.window for layer in self.cost.layers]
        # Whose keys a layer attends to; the layers that use another's; and the layers whose keys others use.
        self.sources = [i if layer.source is None else layer.source for i, layer in enumerate(self.cost.layers)]
        self.shared = [i for i, source in enumerate(self.sources) if source != i]
        self.lent = {self.sources[i] for i in self.shared}
        # The first layer from which on the language model, told by `logits_to_keep`, runs only a prompt's last rows.
        cuts = "logits_to_keep" in inspect.signature(self.text.forward).parameters
        self.cut = self.shared[0] if cuts and self.shared else None
        self._names = [positional(layer) for layer in self.text.layers]
        self.counted = {i for i, layer in enumerate(self.text.layers) if counts_keys(layer)}
        self.kinds = [self._kind(i) for i in range(len(self.attentions))]
        for observer in observers:
            check_observer(observer, self.seeing)
        if self.pruner is not None:
            check_fit(self.pruner, family, len(self.layers))
            check_positions(self.pruner, self.text)
            check_selection(self.pruner, self.text, self.layers)
        if self.pruner is not None and self.pruner.keeps_all:
            self.pruner = None  # the model runs untouched
        self.read = read_layers(self.pruner, family, self.layers, self.seeing) if self.pruner else []
        self._sink_observer = None
        if self.read and self.pruner is not None and self.pruner.exclude_sinks:
            self._sink_observer = VisualSinkObserver(family, model)
            self.observers = [*observers, self._sink_observer]
        self.cut_layers: list[int] = []
        if self.cache_method is not None:
            owners = [i for i in self.seeing if self.sources[i] == i]
            self.cut_layers = [i for i in owners if self.windows[i] is None]
            check_cache(self.cache_method, family, self.cut_layers, self.lent)
            if self.cache_method.keeps_all:
                self.cache_method = None  # the model runs untouched
        self.observed = [list(observer.layers(self.seeing)) for observer in self.observers]
        check_lent(self.pruner, self.observers, self.sources, self.layers)
        self.tower: TowerReader | None = None
        if self.pruner and self.pruner.reads_vision:
            self.tower = TowerReader(family, model, type(self.pruner).__name__, as_one=self.pruner.vision_as_one)
        probed = {i for layers in self.observed for i in layers} | set(self.read)
        if isinstance(self.cache_method, CacheReader):
            check_selecting(self.cache_method, self.observers, self.cut_layers, len(self.attentions))
        if self.cache_method is not None and self.cache_method.reads_attention:
            probed |= set(self.cut_layers)
        self.probed = {i: self.attentions[i] for i in sorted(probed)}

    def _kind(self, i: int) -> tuple[Any, ...]:
        source, attention = self.sources[i], self.attentions[i]
        own = i if source != i or i in self.lent else None  # like no other where layers share keys
        return self.windows[i], own, i in self.counted, attention is None, scaling(attention)

    def may_cut(self, state: PromptState, decider: Decider | None, few: int) -> bool:
        """Whether the language model may run only the last `few` rows of a prompt in its later layers."""
        if self.observers and state.has_image:  # these read the others
            return False
        if decider is None:
            return True
        end = state.valid.shape[1] - few  # behind it there is neither padding nor anything to drop
        text = bool(state.valid[:, -few:].all()) and all(bool((one.slots < end).all()) for one in state.layouts)
        return text and self.cut is not None and decider.layers[-1] < self.cut

    def named(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A decoder layer's arguments, all but its hidden states by name where its signature has names for them."""
        names = self._names[i]
        if len(args) == 1 or not names or len(args) > len(names):
            return args, kwargs
        given = {**kwargs, **dict(zip(names, args, strict=False))}
        return (given.pop(names[0]),), given

    @property
    def inner(self) -> Any:
        """The language model whose `generate` the model's own calls with embeddings (BLIP-2), else None."""
        return self.base if self.base is not self.model.base_model else None

    def brought(self, given: dict[str, Any]) -> dict[str, Any] | None:
        """What the base model is not given of a call's ids and image, where its forward is an inner model's."""
        if self.inner is None:
            return None
        return {name: given[name] for name in BROUGHT if given.get(name) is not None}

    @property
    def seeing(self) -> list[int]:
        """The decoder layers whose attention sees visual tokens."""
        if self.family.cross_attention:
            return list(self.text.config.cross_attention_layers)
        return [i for i, attention in enumerate(self.attentions) if attention is not None]

    @property
    def changes_prompts(self) -> bool:
        """Whether a prompt with an image runs otherwise than in the plain model."""
        return self.pruner is not None or self.cache_method is not None or bool(self.observers)

    def late(self, state: PromptState, last_rows: tuple[int, int] | None) -> list[str]:
        """What the report says of a prompt whose tokens were dropped where no layer keeps keys of its own any more, or
        whose rows all ran where the model alone would have run the last ones: `last_rows`, as the state's."""
        notes, stage = [], next((one for one in state.stages if one.chosen is not None), None)
        if self.shared and stage is not None and stage.layer > max(self.sources):
            notes.append(
                f"layers {stage.layer} and later use the keys of earlier layers, so dropping tokens there leaves the "
                f"cache as long as it was; use layer={max(self.sources)} or less"
            )
        if last_rows is not None and state.last_rows is None:
            first, rows = last_rows
            notes.append(
                f"all rows of the prompt ran in layers {first} and later, where the model alone runs the last {rows}: "
                "the method drops tokens or reads rows there, or padding stands behind a prompt"
            )
        return notes

    def decider(self, state: PromptState) -> Decider | None:
        """The pruner at work on a prompt; None where there is nothing to drop."""
        if self.pruner is None or not state.has_image:
            return None
        wrapped = self.layers if self.read else None
        layers = drop_layers(self.pruner, len(self.text.layers), state.layouts, wrapped)
        # Its forward: hooks on it are for the model's own run.
        norms = [getattr(self.text, name, None) for name in _LAST_NORMS]
        last_norm = next((norm.forward for norm in norms if norm is not None), None)
        return Decider(self.pruner, layers, state, self._sink_observer, last_norm)


def positional(layer: Any) -> list[str]:
    """The names of a layer's arguments, its hidden states' first; none of a wrapper that takes any."""
    parameters = inspect.signature(getattr(layer, "_orig_mod", layer).forward).parameters.values()
    return [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
