"""A prompt of a family whose text rows attend to the image in cross-attention layers: their keys are gathered."""

from typing import Any

from torch import Tensor

from ..attention.masks import take_mask
from ..errors import VlmpruneError
from ..flow.stage import Stage
from ..hf.arguments import cache_in
from .decide import Decider
from .decode import Arguments
from .prefill import Prefill


class CrossPrefill(Prefill):
    """The same for cross-attention states; there is one stage, and rows of the sequence are left alone."""

    def enter(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        self.state.cache = cache_in(kwargs)
        states, decider = kwargs.get("cross_attention_states"), self.decider
        if states is None or i not in self.setup.text.config.cross_attention_layers:
            return None
        states = states.reshape(len(self.state.layouts), -1, states.shape[-1])
        self.state.cross_columns = states.shape[1]
        if decider is None or i < decider.layers[0]:
            return None
        mask = kwargs.get("cross_attention_mask")
        if not self.state.stages and decider.pruner.reads_own_layer:
            self._read_ahead(i, args, kwargs, decider)
        stage = self.state.stages[0] if self.state.stages else self._decide(decider, states, mask)
        if (chosen := stage.chosen) is None:
            return None
        new = dict(kwargs)
        new["cross_attention_states"] = self._compact(stage, chosen, states, {})
        if mask is not None:
            new["cross_attention_mask"] = self._once(
                "mask", stage, mask, lambda: take_mask(mask, None, chosen.columns, chosen.ragged)
            )
        return args, new

    def _decide(self, decider: Decider, states: Tensor, mask: Any) -> Stage:
        (layer,) = decider.layers
        stage = decider.decide(layer, states)
        if stage.chosen is None:
            return stage
        if stage.chosen.ragged and mask is None:
            raise VlmpruneError(
                "A batch of images of different sizes needs the processor's cross_attention_mask; pass everything it "
                "returns."
            )
        if getattr(self.state.cache, "is_compileable", False):
            raise VlmpruneError(
                "A static cache has room for exactly all keys of the image, so a pruned prompt with cross attention "
                "cannot fill it; use the default cache instead of cache_implementation='static'."
            )
        return stage
