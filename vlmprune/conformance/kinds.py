"""What each decoder layer is, from what it does with a probe input: does its mask decide what reaches a row, or not?

Shapes: B batch, S sequence of the prompt.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedModelError
from .cross import STATES
from .layer_call import LayerCall, by_row, sequence_axis
from .masks import visible_columns, without

# What a change of tokens that a mask hides does to the others, relative to a layer's update: 0 in attention, up to 0.09
# where int8 activations share one scale, 1.1 in recurrences (measured on tiny models).
REACHES = 0.25


@dataclass(frozen=True)
class Kind:
    """A decoder layer. `masked`: hidden columns of its mask are all it takes; else it runs over what is left only."""

    masked: bool
    name: str

    def __str__(self) -> str:
        return self.name


def probe_layers(layers: Sequence[nn.Module], valid: Tensor, probed: Tensor, found: list[Kind]) -> ExitStack:
    """Hooks, taken off when the stack closes, that find the kind of every layer as a prompt runs through them.

    Args:
        valid: [B, S], what is no padding. probed: [B, S], the tokens that are changed. found: filled, one a layer.
    """
    stack = ExitStack()

    def look(i: int) -> Any:
        def hook(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if len(found) == i:  # the prompt, not a step
                found.append(kind_of(i, LayerCall(layer, args, kwargs), valid, probed))

        return hook

    for i, layer in enumerate(layers):
        stack.callback(layer.register_forward_pre_hook(look(i), with_kwargs=True).remove)
    return stack


def kind_of(i: int, call: LayerCall, valid: Tensor, probed: Tensor) -> Kind:
    """The layer `i`, by a change of the `probed` [B, S] rows that its mask hides.

    Raises:
        UnsupportedModelError: its mask hides a part of what reaches a row, so that there is no reference for it.
    """
    hidden, name = call.hidden, call.mask_name
    mask = None if name is None else call.given.get(name)
    axis = sequence_axis(hidden, *probed.shape)
    if axis is None:  # fewer rows: their keys are another layer's
        return Kind(True, seen_by(mask, valid))
    probed = probed.to(hidden.device)
    others = (valid.to(hidden.device) & ~probed).nonzero(as_tuple=True)
    changed = hidden.clone()
    by_row(changed, axis)[probed] *= -1

    def rows(one: LayerCall) -> Tensor:
        return by_row(one.run(), axis)[others].flatten(1).float()

    states = call.given.get(STATES)
    if states is not None and not torch.equal(rows(call), rows(call.changed(**{STATES: -states}))):
        return Kind(True, "cross attention")

    def reaches(one: Tensor, other: Tensor, unit: Tensor) -> bool:
        return float((one - other).square().mean(1).sqrt().max()) > REACHES * float(unit)

    if name is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return Kind(False, "recurrent")
    hiding = call.changed(**{name: without(mask, probed, *[probed.shape[1]] * 2)})
    try:
        base = rows(hiding)
    except (RuntimeError, TypeError, ValueError, IndexError):
        if mask is not None:
            raise
        return Kind(False, "recurrent")  # it takes no mask of this shape
    unit = (base - by_row(hidden, axis)[others].flatten(1).float()).square().mean().sqrt()
    if not reaches(rows(hiding.changed(**{call.first: changed})), base, unit):
        return Kind(True, seen_by(mask, valid))
    if not reaches(rows(call), base, unit):
        return Kind(False, "recurrent")
    raise UnsupportedModelError(
        f"Layer {i}, a {type(call.layer).__name__}, mixes tokens by attention and also past its mask (short "
        "convolutions do), so that check() has no reference; compare answers with and without pruning instead."
    )


def seen_by(mask: Any, valid: Tensor) -> str:
    """What the last rows of a prompt see through a mask: "full", "window of 8" or "chunk"."""
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return "full"
    longest = int(valid.sum(1).argmax())
    visible = visible_columns(mask)[min(longest, len(mask) - 1), 0][-3:]  # [3 or fewer, columns]
    start, count = visible.int().argmax(1), visible.sum(1)
    last = max(0, valid.shape[1] - mask.shape[-1]) + int(start[-1])
    if last <= int(valid[longest].int().argmax()):
        return "full"
    moves = bool((start.diff() == 1).all())  # of a single row it is not known
    return f"window of {int(count[-1])}" if moves else "chunk"
