"""Tokens hidden in models whose text attends to the image in layers of its own: columns of the cross-attention mask.

Shapes: B batch, N columns of the image, padding included, D width.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import VlmpruneError
from .layer_call import LayerCall
from .masks import visible_columns

MASK, STATES, SEES = "cross_attention_mask", "cross_attention_states", "full_text_row_masked_out_mask"


def image_columns(layers: Sequence[nn.Module], found: list[Tensor]) -> ExitStack:
    """Hooks that find, as a prompt runs, the columns [B, N] that any of its rows sees: the visual tokens."""

    def look(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = LayerCall(layer, args, kwargs).given
        mask = given.get(MASK)
        if not isinstance(mask, Tensor):
            raise VlmpruneError(f"The prompts came without their {MASK}; pass everything that the processor returned.")
        if not found:
            rows = given[SEES][:, 0] != 0  # in the mask, those before the first image see everything
            found.append((visible_columns(mask)[:, 0] & rows).any(1))

    stack = ExitStack()
    for layer in layers:
        stack.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
    return stack


@contextmanager
def hiding_columns(layers: Sequence[nn.Module], dropped: Tensor, *, negated: bool = False) -> Iterator[None]:
    """Within the block the layers do without the columns `dropped` [B, N]."""

    def hide(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = LayerCall(layer, args, kwargs)
        mask, states = call.given[MASK], call.given.get(STATES)
        gone = dropped.to(mask.device)
        call = call.changed(**{MASK: mask.masked_fill(gone[:, None, None], torch.finfo(mask.dtype).min)})
        if negated and states is not None:
            turned = states.reshape(*gone.shape, -1).clone()
            turned[gone] *= -1
            call = call.changed(**{STATES: turned.view_as(states)})
        return call.args, call.kwargs

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(hide, with_kwargs=True).remove)
        yield
