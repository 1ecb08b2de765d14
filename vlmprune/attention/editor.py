"""Base of VAR's and ACT's observers: sink masks of a prompt's columns, made in its prefill and used in each step.

Shapes: B batch, S sequence, P columns a layer holds of the prompt (fewer than S after a compaction), T key length.
"""

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..families import Family
from ..flow.compact import Compaction
from ..flow.prompt_state import PromptState
from ..flow.sinks import eligible_layers
from ..hf.cache_state import attach_state, physical_sizes, repeated, state_of
from ..ops.gather import gather_positions
from .masks import sources_of
from .observer import AttentionObserver
from .probe import AttentionCall


@dataclass(frozen=True)
class KeyColumns:
    """The columns that a layer holds of a prompt: bool [B, P].

    `visual`: visual tokens. `real`: without padding, filler and generated tokens. `suffix_rows`: text after the last
    visual token of the sample, generated rows included; empty for a sample without an image. `rows` [B, R]:
    `suffix_rows` as query positions, -1 where a sample's suffix begins later than another's.
    """

    visual: Tensor
    real: Tensor
    suffix_rows: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> "KeyColumns":
        return KeyColumns(*(part.to(device) for part in (self.visual, self.real, self.suffix_rows, self.rows)))


def columns_of(state: PromptState) -> KeyColumns:
    """The columns of an uncompacted prompt, on the CPU."""
    valid = state.valid
    visual = torch.zeros_like(valid)
    suffix_rows = torch.zeros_like(valid)
    for row, layout in enumerate(state.layouts):
        visual[row, layout.slots] = True
        if layout.count:
            suffix_rows[row, int(layout.slots[-1]) + 1 :] = True
    real = state.prompt_valid
    return with_rows(visual & real, real, suffix_rows & valid)


def compacted(columns: KeyColumns, chosen: Compaction) -> KeyColumns:
    """The columns left by the pruner."""
    parts = (columns.visual, columns.real, columns.suffix_rows)
    return with_rows(*(gather_positions(part, chosen.index) & chosen.real for part in parts))


def check_readable(call: AttentionCall, name: str) -> None:
    """Refuse kernels whose weights cannot be edited row by row: of masks that are no tensors, or with learned sinks."""
    if call.mask is not None and not isinstance(call.mask, Tensor):
        raise VlmpruneError(
            f"{name} cannot read attention masks of type {type(call.mask).__name__}; load the model with "
            "attn_implementation='sdpa'."
        )
    if call.options.get("s_aux") is not None:
        raise VlmpruneError(
            f"{name} cannot edit attention with learned sinks, as this language model has; use a pruner instead."
        )


def with_rows(visual: Tensor, real: Tensor, suffix_rows: Tensor) -> KeyColumns:
    """Columns whose `rows` run from the first suffix row of any sample to the last."""
    width = suffix_rows.shape[1]
    first = next(iter(suffix_rows.any(dim=0).nonzero()[:, 0].tolist()), width)
    return KeyColumns(visual, real, suffix_rows, torch.where(suffix_rows[:, first:], torch.arange(first, width), -1))


class AttentionEditor(AttentionObserver):
    """Watches the eligible layers, those of 2..L-2 that attend, and keeps one sink mask [B, ..., P] for each that has
    sinks.

    The sink masks of a prompt lie on the cache that it fills, so that another prompt in between, or beams that repeat
    its rows, cannot mix them up.
    """

    def __init__(self, name: str, family: Family, text_model: Any) -> None:
        self.name, self.text = name, text_model
        layers = text_model.layers
        attentions = [family.attention(layer) for layer in layers]
        self.eligible = [i for i in eligible_layers(len(layers)) if attentions[i] is not None]
        self.sources = sources_of(attentions)
        self._lent = {source for i, source in enumerate(self.sources) if source != i}
        if not self.eligible:
            raise VlmpruneError(
                f"{name!r} changes the attention of decoder layers 2 to L-2, and a model of {len(layers)} layers has "
                f"{'none that attends among these' if eligible_layers(len(layers)) else 'none of these'}; use a deeper "
                "model."
            )
        self.state: PromptState | None = None
        self._cache: weakref.ref[Any] | None = None  # the editor outlives a call, and must not keep its cache alive
        self.sink_masks: dict[int, Tensor] = {}
        self.offsets: dict[int, int] = {}
        self._columns: dict[tuple[int | None, torch.device], KeyColumns] = {}

    def layers(self, seeing: Sequence[int]) -> Sequence[int]:
        return self.eligible

    def prompt(self, state: PromptState) -> None:
        self.state, self._cache, self.sink_masks, self.offsets = state, None, {}, {}
        self._columns = {(None, torch.device("cpu")): columns_of(state)}
        if any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in self.text.layers):
            raise VlmpruneError(
                f"Gradient checkpointing runs layers a second time, where {self.name!r} cannot edit them; call "
                "model.gradient_checkpointing_disable() first."
            )

    def begin_decode(self, ids: Tensor | None, cache: Any) -> None:
        self.state, self._cache, self.offsets = None, weakref.ref(cache), {}
        found = state_of(cache, self.name)
        if found is None:
            warnings.warn(
                f"The cache was filled before {self.name!r} was put on the model, so the prompt's sinks are unknown "
                "and nothing is changed; run the prompt again.",
                stacklevel=2,
            )
        self.sink_masks = found or {}

    def before_layer(self, layer: int, hidden: Tensor) -> None:
        if self.state is None:
            source = self.sources[layer]
            if source != layer:  # it has run
                self.offsets[layer] = self.offsets.get(source, 0)
            elif layer in self.sink_masks or (self.sink_masks and layer in self._lent):
                # A sliding window holds only the last columns; read here, before the step's own are added.
                cache = self._cache() if self._cache is not None else None
                assert cache is not None, "the step that fills it is running"
                self.offsets[layer] = physical_sizes(cache, hidden.shape[1], layer)[1]
            return
        if layer not in self.eligible:
            return
        if self._cache is None and self.state.cache is not None:
            self._cache = weakref.ref(self.state.cache)
            attach_state(self.state.cache, self.name, self.sink_masks)
        self.enter_prompt(layer, hidden, self.columns(layer, hidden.device))

    def columns(self, layer: int, device: torch.device) -> KeyColumns:
        """The columns that this layer holds of the prompt, made once for all layers of a stage."""
        assert self.state is not None
        stage = self.state.stage_at(layer)
        chosen = stage.on_host if stage is not None else None
        since = stage.layer if stage is not None and chosen is not None else None
        if (since, device) not in self._columns:
            whole = self._columns[None, torch.device("cpu")]
            self._columns[since, device] = (whole if chosen is None else compacted(whole, chosen)).to(device)
        return self._columns[since, device]

    def attention(self, layer: int, call: AttentionCall, output: Tensor) -> Tensor | None:
        check_readable(call, self.name)
        columns = self.columns(layer, output.device) if self.state is not None else None
        if columns is not None:
            self.read_prompt(layer, call, columns)
        if layer not in self.sink_masks:
            return None
        sink_mask = self.sink_masks[layer]
        if columns is None:
            sink_mask = self.step_mask(layer, output)
        return self.edit(layer, call, output, sink_mask, columns) if sink_mask.shape[-1] else None

    def step_mask(self, layer: int, rows: Tensor) -> Tensor:
        """The sink mask as a step with these rows [B, ...] finds the layer's columns."""
        return repeated(self.sink_masks[layer], len(rows)).to(rows.device)[..., self.offsets[layer] :]

    def cut(self, layer: int, chosen: Compaction, group: int) -> None:
        for i, source in enumerate(self.sources):
            if source == layer and i in self.sink_masks:
                self.sink_masks[i] = self.gathered(i, self.sink_masks[i], chosen, group)

    # -- what an intervention defines ---------------------------------------------------------------------------

    def enter_prompt(self, layer: int, hidden: Tensor, columns: KeyColumns) -> None:
        """The residual stream [B, P, width] of a prompt enters an eligible layer."""

    def read_prompt(self, layer: int, call: AttentionCall, columns: KeyColumns) -> None:
        """An attention call of a prompt; the last chance to make a sink mask."""

    def gathered(self, layer: int, sink_mask: Tensor, chosen: Compaction, group: int) -> Tensor:
        """A sink mask [B, ..., P] of the entries that are left, False at filler; see `cut`."""
        raise NotImplementedError

    def edit(
        self, layer: int, call: AttentionCall, output: Tensor, sink_mask: Tensor, columns: KeyColumns | None
    ) -> Tensor:
        """Edit the rows of a prompt, or of a step (`columns` is None); `sink_mask` [B, ..., P] is of the first keys."""
        raise NotImplementedError
