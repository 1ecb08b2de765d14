"""Which visual tokens of a prompt are sinks, for methods that leave them out of a ranking.

Shapes: B batch, S sequence, V visual tokens of a sample, D width, L layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..families import Family
from ..flow.locate import SampleLayout
from ..flow.prompt_state import PromptState
from ..flow.sinks import FIRST_LAYER, phi
from .observer import AttentionObserver
from .sink_dims import SinkDims


class VisualSinkObserver(AttentionObserver):
    """Collects the visual sinks of a prompt, one attention layer after another, from the residual stream alone.

    After a prompt, `by_layer` holds the visual sinks of each such layer from 2 on, per sample bool [V], and `often()`
    those to leave out of a ranking.
    """

    def __init__(self, family: Family, model: Any) -> None:
        self.sinks = SinkDims(family, model, tau=None, dims=None, what="exclude_sinks")
        self._attending = {i for i, one in enumerate(self.sinks.text.layers) if family.attention(one) is not None}
        self._state: PromptState | None = None
        self._running = False
        self.by_layer: dict[int, list[Tensor]] = {}

    def layers(self, seeing: Sequence[int]) -> Sequence[int]:
        return []  # no attention is needed

    def begin(self, ids: Tensor | None, valid: Tensor | None) -> None:
        if ids is not None and valid is not None:
            self.sinks.find(ids, valid)

    def prompt(self, state: PromptState) -> None:
        self._state, self._running, self.by_layer = state, True, {}

    def begin_decode(self, ids: Tensor | None, cache: Any) -> None:
        self._running = False

    def before_layer(self, layer: int, hidden: Tensor) -> None:
        # After a compaction the layouts no longer say where the visual tokens stand.
        if not self._running or self._state is None or self._state.chosen is not None:
            return
        if layer >= FIRST_LAYER and layer in self._attending:
            self.by_layer[layer] = self.among(hidden, self._state.layouts, layer)

    def among(self, hidden: Tensor, layouts: Sequence[SampleLayout], layer: int) -> list[Tensor]:
        """The sinks among the visual tokens whose residual stream [B, S, D] enters a layer: per sample bool [V]."""
        if not self.sinks.dims or layer < FIRST_LAYER:
            return [torch.zeros(layout.count, dtype=torch.bool, device=hidden.device) for layout in layouts]
        found = phi(hidden.detach(), self.sinks.dims) >= self.sinks.tau
        return [row[layout.slots.to(row.device)] for row, layout in zip(found, layouts, strict=True)]

    def often(self) -> list[Tensor]:
        """The visual tokens of the last prompt that are sinks in at least half of those layers: bool [V]."""
        assert self._state is not None, "no prompt was seen"
        if not self.by_layer:
            return [torch.zeros(layout.count, dtype=torch.bool) for layout in self._state.layouts]
        samples = zip(*self.by_layer.values(), strict=True)
        return [torch.stack([one.cpu() for one in layers]).float().mean(dim=0) >= 0.5 for layers in samples]

    def notes(self) -> list[str]:
        if not self.sinks.dims:
            return ["exclude_sinks: no sink dimensions found, so no token was left out of the ranking"]
        return []
