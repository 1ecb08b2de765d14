"""The masked reference: nothing is removed, dropped columns are hidden from every layer's attention in any family.

It takes the masks that the model itself makes and hides columns in them, so it knows nothing of adapters. Layers that
no mask governs run over the rows that are left. Shapes: B batch, S sequence of the prompt, n forced tokens, D width.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .cross import hiding_columns
from .kinds import Kind
from .layer_call import LayerCall, by_row, gathered, scattered, sequence_axis, states_in
from .masks import without
from .rows import numbers_of


class Forced(LogitsProcessor):
    """Every step takes the next of the given tokens [B, n], whatever the model says."""

    def __init__(self, tokens: Tensor, start: int) -> None:
        self.tokens, self.start = tokens, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        taken = self.tokens[:, input_ids.shape[1] - self.start, None].to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter(1, taken, 0.0)


@dataclass(frozen=True)
class Trace:
    """What came of forced tokens: `logits` [B, n, vocabulary], and `rows`, per step what enters and what leaves every
    layer, in turn, its rows as `numbers_of` has them."""

    logits: Tensor
    rows: list[list[Tensor]]


@dataclass(frozen=True)
class ForcedRun:
    """A prompt and the tokens to force after it: `inputs` of `generate`, `valid` [B, S] what is no padding, `visual`
    [B, S] its visual tokens, `tokens` [B, n]. `columns`: of a model with cross attention, which columns [B, N] of it
    are visual tokens."""

    model: Any
    layers: Sequence[nn.Module]
    inputs: dict[str, Any]
    valid: Tensor
    visual: Tensor
    tokens: Tensor
    columns: Tensor | None = None

    @property
    def hideable(self) -> Tensor:
        """The visual tokens where they can be hidden: among the prompt's tokens [B, S] or in columns [B, N]."""
        return self.visual if self.columns is None else self.columns

    def left(self, dropped: Tensor) -> Tensor:
        """Which rows of the prompt [B, S] are left without those of the `hideable`."""
        return self.valid & ~dropped if self.columns is None else self.valid

    def axis(self, states: Tensor) -> int:
        """The axis of a prompt's tokens in hidden states, counted from the end."""
        found = sequence_axis(states, *self.visual.shape)
        return -2 if found is None else found

    def trace(self) -> Trace:
        """Run the prompt and the forced tokens, and look at what enters and what leaves every decoder layer."""
        rows: list[list[Tensor]] = []
        axis = [-2]

        def begin(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if not rows:
                axis[0] = self.axis(LayerCall(layer, args, kwargs).hidden)
            rows.append([])

        def enter(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            rows[-1].append(numbers_of(LayerCall(layer, args, kwargs).hidden, axis[0]))

        def leave(layer: nn.Module, args: Any, output: Any) -> None:
            rows[-1].append(numbers_of(states_in(output), axis[0]))

        steps = self.tokens.shape[1]
        with ExitStack() as hooks, torch.no_grad():
            hooks.callback(self.layers[0].register_forward_pre_hook(begin, with_kwargs=True, prepend=True).remove)
            for layer in self.layers:  # after hooks that change what enters, and before those that change what leaves
                hooks.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
                hooks.callback(layer.register_forward_hook(leave, prepend=True).remove)
            out = self.model.generate(
                **self.inputs,
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
                num_beams=1,
                num_return_sequences=1,
                use_cache=True,
                output_logits=True,
                return_dict_in_generate=True,
                logits_processor=LogitsProcessorList([Forced(self.tokens, self.visual.shape[1])]),
            )
        return Trace(torch.stack([step.float().cpu() for step in out.logits], dim=1), rows)


@contextmanager
def hiding(
    run: ForcedRun, kinds: Sequence[Kind], dropped: Tensor, first: int, *, negated: bool = False
) -> Iterator[None]:
    """Within the block, which holds one trace, layers from `first` on do without the rows `dropped` [B, S], or without
    the columns [B, N] of their cross attention.

    Args:
        negated: turn the sign of what the hidden rows hold, which must change nothing.
    """
    if run.columns is not None:
        with hiding_columns(run.layers[first:], dropped, negated=negated):
            yield
        return
    total, place = [0], [-2]

    def count(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = LayerCall(layer, args, kwargs).hidden
        if not total[0]:
            place[0] = run.axis(hidden)
        total[0] += hidden.shape[place[0]]

    def mask(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = LayerCall(layer, args, kwargs)
        name = call.mask_name
        if name is not None:
            rows = call.hidden.shape[place[0]]
            call = call.changed(**{name: without(call.given.get(name), dropped, rows, total[0])})
        return call.args, call.kwargs

    def negate(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = LayerCall(layer, args, kwargs)
        if call.hidden.shape[place[0]] != dropped.shape[1]:
            return None
        states = call.hidden.clone()
        by_row(states, place[0])[dropped.to(states.device)] *= -1
        call = call.changed(**{call.first: states})
        return call.args, call.kwargs

    with ExitStack() as hooks:
        for layer, kind in list(zip(run.layers, kinds, strict=True))[first:]:
            if kind.masked:
                hooks.callback(layer.register_forward_pre_hook(mask, with_kwargs=True).remove)
            else:
                hooks.enter_context(_over_rows(layer, run.valid & ~dropped, place))
        if negated:
            hooks.callback(run.layers[first].register_forward_pre_hook(negate, with_kwargs=True, prepend=True).remove)
        hooks.callback(run.layers[0].register_forward_pre_hook(count, with_kwargs=True, prepend=True).remove)
        yield


@contextmanager
def _over_rows(layer: nn.Module, rows: Tensor, place: list[int]) -> Iterator[None]:
    """Within the block the layer sees only `rows` [B, S] of a prompt, and the others leave it as they entered."""
    whole: list[Tensor] = []

    def enter(layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = LayerCall(layer, args, kwargs)
        if call.hidden.shape[place[0]] != rows.shape[1]:
            return None  # a step: a state has no columns
        whole.append(call.hidden)
        call = gathered(call, rows)
        return call.args, call.kwargs

    def leave(layer: nn.Module, args: Any, output: Any) -> Any:
        if not whole:
            return None
        full = scattered(whole.pop(), states_in(output), rows, place[0])
        return (full, *output[1:]) if isinstance(output, tuple) else full

    before = layer.register_forward_pre_hook(enter, with_kwargs=True)
    after = layer.register_forward_hook(leave, prepend=True)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def written_masks(text: Any) -> Iterator[None]:
    """Within the block a language model whose kernel takes no 4-D masks (FlashAttention, FlexAttention) uses one that
    does."""
    config, own = text.config, text.config._attn_implementation
    if own not in ("sdpa", "eager"):
        config._attn_implementation = "sdpa" if getattr(text, "_supports_sdpa", True) else "eager"
    try:
        yield
    finally:
        config._attn_implementation = own


@contextmanager
def plain_generation(model: nn.Module) -> Iterator[None]:
    """Within the block `generate` is greedy and nothing else, whatever a checkpoint's generation config asks for, such
    as a static cache, assistance, or strings to stop at; token ids stay."""
    plain = {name: value for name, value in vars(GenerationConfig()).items() if not name.startswith("_")}
    modules: list[Any] = [
        one for one in model.modules() if isinstance(vars(one).get("generation_config"), GenerationConfig)
    ]
    own = [module.generation_config for module in modules]
    for module in modules:
        module.generation_config = copy.deepcopy(module.generation_config)
        for name, value in plain.items():
            if not name.endswith("token_id"):
                setattr(module.generation_config, name, value)
    try:
        yield
    finally:
        for module, config in zip(modules, own, strict=True):
            module.generation_config = config
