"""The naive twin of pruning by `generate` itself: forced tokens, nothing removed, dropped columns hidden by layer.

For models of any family: the masks that the model makes are taken as they are, and the dropped columns go from them.
A recurrence has no columns to hide: it runs over the rows that are left, and its outputs go back to where these stood.
It imports nothing of the package. Shapes: B batch, S sequence of the prompt, T tokens so far, V visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList


class Forced(LogitsProcessor):
    """Every step takes the next of the given tokens [B, steps]."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = torch.full_like(scores, float("-inf"))
        return out.scatter(1, self.tokens[:, input_ids.shape[1] - self.start, None], 0.0)


def forced_logits(model: Any, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """[B, steps, vocabulary]: what predicts each of the tokens."""
    start = inputs["input_ids"].shape[1]
    out = model.generate(
        **inputs, max_new_tokens=tokens.shape[1], do_sample=False, output_logits=True, return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([Forced(tokens, start)]),
    )  # fmt: skip
    return torch.stack(out.logits, dim=1)


def dropped_of(visual: Tensor, kept: Sequence[Any]) -> Tensor:
    """Bool [B, S]: of the visual tokens [B, S] those that were not kept, `kept` being places among a sample's."""
    dropped = visual.clone()
    for row, own in zip(dropped, kept, strict=True):
        slots = row.nonzero()[:, 0]
        row[slots] = ~torch.isin(torch.arange(len(slots)), torch.as_tensor(own, dtype=torch.long))
    return dropped


def masked_forced_logits(
    model: Any,
    layers: Sequence[nn.Module],
    inputs: dict[str, Tensor],
    dropped: Tensor,
    layer: int,
    tokens: Tensor,
    more: Sequence[tuple[Tensor, int]] = (),
) -> Tensor:
    """The same, the columns `dropped` [B, S] hidden from every other row in the layers from `layer` on; `more` are
    further ones, each with its own first layer."""
    with ExitStack() as hooks:
        for columns, at in ((dropped, layer), *more):
            left = inputs["attention_mask"].bool() & ~columns
            hooks.enter_context(hiding(layers[0], layers[at:], columns, left))
        return forced_logits(model, inputs, tokens)


@contextmanager
def hiding(first: nn.Module, layers: Sequence[nn.Module], dropped: Tensor, left: Tensor) -> Iterator[None]:
    """Within the block, a prompt and what comes after it, the columns `dropped` [B, S] are hidden in `layers`, and the
    rows `left` [B, S] are the others that are no padding. `first`: the model's first layer."""
    total = [0]

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        total[0] += rows_of(args[0], len(dropped))

    def hide(columns: Tensor, module: nn.Module, args: Any, kwargs: Any) -> Any:
        rows = rows_of(args[0], len(columns))  # the last of all, where the model runs no others
        return args, kwargs | {"attention_mask": hidden_from(kwargs.get("attention_mask"), columns, rows, total[0])}

    with ExitStack() as hooks:
        hooks.callback(first.register_forward_pre_hook(count, with_kwargs=True, prepend=True).remove)
        for one in layers:
            if recurrent(one):
                hooks.enter_context(run_over(one, left))
            else:
                hooks.callback(one.register_forward_pre_hook(partial(hide, dropped), with_kwargs=True).remove)
        yield


def recurrent(layer: nn.Module) -> bool:
    """Whether a layer carries something from row to row by itself: all such layers begin with a short convolution."""
    return any(isinstance(part, nn.Conv1d) for part in layer.modules())


@contextmanager
def run_over(layer: nn.Module, left: Tensor) -> Iterator[None]:
    """Within the block the layer's prompt is the rows `left` [B, S], side by side, and the other rows pass by."""
    forward = layer.forward

    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden.shape[1] != left.shape[1]:
            return forward(hidden, *args, **kwargs)
        longest = int(left.sum(dim=1).max())
        rows = [row[some] for row, some in zip(hidden, left, strict=True)]
        alone = torch.stack([torch.cat([row.new_zeros(longest - len(row), row.shape[1]), row]) for row in rows])
        real = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
        made = forward(alone, *args, **{**kwargs, "attention_mask": real})
        out = hidden.clone()
        for row, some, new, own in zip(out, left, made[0] if isinstance(made, tuple) else made, rows, strict=True):
            row[some] = new[longest - len(own) :]
        return (out, *made[1:]) if isinstance(made, tuple) else out

    layer.forward = run
    try:
        yield
    finally:
        del layer.forward


def rows_of(hidden: Tensor, batch: int) -> int:
    """How many rows hidden states have: [B, rows, D], or with several streams [N, B, rows, D] or [B, rows, N, D]."""
    return hidden.shape[2] if hidden.dim() == 4 and hidden.shape[0] != batch else hidden.shape[1]


def hidden_from(mask: Tensor | None, dropped: Tensor, rows: int, total: int) -> Tensor:
    """A layer's mask without the dropped columns; a dropped row still sees itself."""
    if mask is None:
        at = torch.arange(total)
        mask = (at[None, :] <= at[total - rows :, None])[None, None]
    columns = mask.shape[-1]
    offset = total - columns
    gone = torch.zeros(len(dropped), total, dtype=torch.bool)
    gone[:, : dropped.shape[1]] = dropped
    own = torch.arange(total - rows, total)[:, None] == torch.arange(offset, total)
    gone = (gone[:, None, None, offset:] & ~own).expand(-1, 1, rows, columns)
    mask = mask.expand(len(dropped), -1, -1, -1)
    return mask & ~gone if mask.dtype == torch.bool else mask.masked_fill(gone, torch.finfo(mask.dtype).min)
