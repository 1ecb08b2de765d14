"""A method made ready for a model: where it drops tokens, whose attention is read, and whether the two fit at all."""

from collections.abc import Sequence
from typing import Any

from ..accounting.flops import model_cost
from ..attention.observer import AttentionObserver, check_observer
from ..attention.sink_observer import VisualSinkObserver
from ..attention.tower import TowerReader
from ..families import Family
from ..flow.prompt_state import PromptState
from ..methods.base import Method, Pruner
from ..methods.combined import parts_of
from .decide import Decider
from .fit import check_backbone, check_fit, drop_layers, read_layers


class Setup:
    """What a session knows of its model and method before any call, refused where they do not fit; the model is not
    touched.

    `base`, `text`: the base model and the language model. `layers`: before which the pruner drops tokens. `read`: the
    layers whose attention or keys it reads. `observed`: the layers of each of the `observers`. `probed`: the attention
    modules of all of these. `tower`: reads the vision tower, where the pruner asks for it.
    """

    def __init__(self, model: Any, family: Family, method: Method, observers: Sequence[AttentionObserver]) -> None:
        self.model, self.family, self.method, self.observers = model, family, method, observers
        self.base: Any = model.base_model
        self.text: Any = family.language_model(model)
        check_backbone(self.text)
        self.pruner = next((part for part in parts_of(method) if isinstance(part, Pruner)), None)
        self.layers = drop_layers(self.pruner, len(self.text.layers)) if self.pruner else (0,)
        self.cost = model_cost(family, model)
        self.windows = [layer.window for layer in self.cost.layers]
        for observer in observers:
            check_observer(observer, self.seeing)
        if self.pruner is not None:
            check_fit(self.pruner, family, len(self.layers))
        if self.pruner is not None and self.pruner.keeps_all:
            self.pruner = None  # the model runs untouched
        self.read = read_layers(self.pruner, self.layers, self.seeing) if self.pruner else []
        self._sink_observer = None
        if self.read and self.pruner is not None and self.pruner.exclude_sinks:
            self._sink_observer = VisualSinkObserver(family, model)
            self.observers = [*observers, self._sink_observer]
        self.observed = [list(observer.layers(self.seeing)) for observer in self.observers]
        self.tower: TowerReader | None = None
        if self.pruner and self.pruner.reads_vision:
            self.tower = TowerReader(family, model, type(self.pruner).__name__, as_one=self.pruner.vision_as_one)
        probed = {i for layers in self.observed for i in layers} | set(self.read)
        self.probed = {i: family.attention(self.text.layers[i]) for i in sorted(probed)}

    @property
    def seeing(self) -> list[int]:
        """The decoder layers whose attention sees visual tokens."""
        if self.family.cross_attention:
            return list(self.text.config.cross_attention_layers)
        return list(range(len(self.text.layers)))

    @property
    def changes_prompts(self) -> bool:
        """Whether a prompt with an image runs otherwise than in the plain model."""
        return self.pruner is not None or bool(self.observers)

    def decider(self, state: PromptState) -> Decider | None:
        """The pruner at work on a prompt; None where there is nothing to drop."""
        if self.pruner is None or not state.has_image:
            return None
        wrapped = self.layers if self.read else None
        layers = drop_layers(self.pruner, len(self.text.layers), state.layouts, wrapped)
        # Its forward: hooks on it are for the model's own run.
        last_norm = getattr(getattr(self.text, "norm", None), "forward", None)
        return Decider(self.pruner, layers, state, self._sink_observer, last_norm)
