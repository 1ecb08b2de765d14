"""What a decoder layer is called with: its arguments by name, and what in them belongs to tokens, found by shape.

Shapes: B batch, S sequence of the prompt, C rows that are left, D width.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CACHES = ("cache", "past_key_values", "past_key_value", "shared_kv_states")


@dataclass(frozen=True)
class LayerCall:
    """One call of a decoder layer."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def _names(self) -> list[str]:
        """Of the layer's parameters; the class knows them, also where a hook of accelerate shadows the forward."""
        inner = getattr(self.layer, "_orig_mod", self.layer)  # of a compiled one
        return list(inspect.signature(type(inner).forward).parameters)[1:]

    @property
    def given(self) -> dict[str, Any]:
        """All arguments by name."""
        return dict(zip(self._names, self.args, strict=False)) | self.kwargs

    @property
    def first(self) -> str:
        """What the layer calls its first argument, the hidden states."""
        return self._names[0]

    @property
    def hidden(self) -> Tensor:
        """Hidden states entering the layer."""
        states: Tensor = self.given[self.first]
        return states

    @property
    def mask_name(self) -> str | None:
        """What the layer calls its attention mask, None where it takes none."""
        known = [*self.kwargs, *self._names]
        return next((name for name in ("attention_mask", *known) if name in known and "mask" in name), None)

    def changed(self, **values: Any) -> "LayerCall":
        """The same call with other values."""
        names, args, kwargs = self._names, list(self.args), dict(self.kwargs)
        for name, value in values.items():
            at = names.index(name) if name in names else len(args)
            if at < len(args):
                args[at] = value
            else:
                kwargs[name] = value
        return LayerCall(self.layer, tuple(args), kwargs)

    def run(self) -> Tensor:
        """The layer's output for this call, without its hooks and without a trace in the model's caches."""
        copies = {name: _shallow(value) for name, value in self.given.items() if name in _CACHES and value is not None}
        call = self.changed(**copies)
        out = getattr(self.layer, "_orig_mod", self.layer).forward(*call.args, **call.kwargs)
        return states_in(out)


def states_in(output: Any) -> Tensor:
    """The hidden states in what a layer returned."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _shallow(cache: Any) -> Any:
    """A cache that can be written to and leaves the given one as it is, on a prompt, which finds it empty."""
    if isinstance(cache, dict):
        return dict(cache)
    copied = copy.copy(cache)
    if hasattr(cache, "layers"):
        copied.layers = [copy.copy(layer) for layer in cache.layers]
    return copied


def sequence_axis(value: Tensor, batch: int, length: int) -> int | None:
    """The axis of `length` tokens behind one of 1 or `batch`, counted from the end; None where there is none."""
    shape = value.shape
    return next(
        (a - len(shape) for a in range(1, len(shape)) if shape[a] == length and shape[a - 1] in (1, batch)), None
    )


def by_row(states: Tensor, axis: int) -> Tensor:
    """Hidden states with batch and sequence in front, [B, S, ...]: a view."""
    return states.movedim((axis - 1, axis), (0, 1))


def taken(value: Any, index: Tensor, length: int) -> Any:
    """What holds something for each of `length` tokens, at `index` [B, C]; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(taken(one, index, length) for one in value)
    if isinstance(value, dict):
        return {name: taken(one, index, length) for name, one in value.items()}
    axis = sequence_axis(value, len(index), length) if isinstance(value, Tensor) else None
    if axis is None:
        return value
    rows = by_row(value, axis)
    rows = rows.expand(len(index), *rows.shape[1:])
    at = index.to(value.device)
    return rows[torch.arange(len(at), device=at.device)[:, None], at].movedim((0, 1), (axis - 1, axis))


def kept_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rows [B, S] that stay: their index [B, C], padded left, and which of the C are real [B, C]."""
    counts = rows.sum(1)
    width = int(counts.max())
    index = torch.zeros(len(rows), width, dtype=torch.long, device=rows.device)
    for own, row, count in zip(index, rows, counts.tolist(), strict=True):
        own[width - count :] = row.nonzero()[:, 0]
    real = torch.arange(width, device=rows.device) >= width - counts[:, None]
    return index, real


def gathered(call: LayerCall, rows: Tensor) -> LayerCall:
    """The call of a recurrent layer over the `rows` [B, S] that stay only; padding in front of shorter samples is zero,
    which leaves a state as it is, and hidden by the layer's 2-D mask."""
    index, real = kept_rows(rows)
    length, name = rows.shape[1], call.mask_name
    new = {key: value if key in _CACHES else taken(value, index, length) for key, value in call.given.items()}
    if name is not None:
        mask = call.given.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 4:  # one that it does not read
            new[name] = None
        elif mask is not None or not bool(real.all()):
            new[name] = real.long() if mask is None else new[name] * real.to(mask.device, mask.dtype)
    states = taken(call.hidden, index, length)
    axis = sequence_axis(states, len(index), index.shape[1])
    assert axis is not None, "it has just been gathered"
    states = states.clone()
    by_row(states, axis)[~real.to(states.device)] = 0
    return call.changed(**new | {call.first: states})


def scattered(whole: Tensor, output: Tensor, rows: Tensor, axis: int) -> Tensor:
    """The `output` of a layer over the `rows` [B, S] that stay, back in its place among `whole`, which entered it."""
    full = whole.clone()
    target, source = by_row(full, axis), by_row(output, axis)
    for b, own in enumerate(rows.to(full.device)):
        target[b, own] = source[b, source.shape[1] - int(own.sum()) :].to(full.dtype)
    return full
