"""Models built once a process, generation with the logits of every step, and snapshots of a model's outside."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.planted import Plan, counts, equal_plan, ragged_plan
from tests.support.reference import masked_logits
from tests.support.tiny_families import Inputs, build, make_inputs

STEPS = 8


@cache
def shared(family: str, attn: str = "sdpa") -> PreTrainedModel:
    """The family's model, shared by the tests of this process: wrap it in a `with` block, change nothing else.

    It has run once, because transformers itself sets up things on a model's first forward.
    """
    model = build(family, attn=attn)
    with torch.no_grad():
        model(**make_inputs(model))
    return model


def plan_of(model: PreTrainedModel, inputs: Inputs, kind: str) -> Plan:
    visual = counts(model, inputs)
    return equal_plan(visual) if kind == "equal" else ragged_plan(visual)


def generate(model: Any, inputs: dict[str, Tensor], steps: int = STEPS, **options: Any) -> tuple[Tensor, Any]:
    """Greedy decoding: logits of every step [B, steps, vocabulary], and all that `generate` returned."""
    settings = {"max_new_tokens": steps, "do_sample": False, **options}
    out = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    return torch.stack(out.logits, dim=1), out


def reference(model: PreTrainedModel, inputs: Inputs, plan: Plan, layer: int, steps: int, tokens: Tensor) -> Tensor:
    """The masked twin's logits [B, steps, vocabulary] along given tokens; the model must not be wrapped."""
    return masked_logits(model, inputs, plan, layer, steps, tokens)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5 of the size of the logits: fp32 sums in another order, and nothing more."""
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks")


# Qwen stores the position offsets of its last prompt on the model, wrapped or not.
_OWN_STATE = ("rope_deltas",)


def outside(model: PreTrainedModel) -> dict[str, Any]:
    """All that a wrap could leave behind: attributes, hooks, signatures, and configs of every module."""
    return {
        name: (
            {
                key: value if isinstance(value, int | float | str) else id(value)
                for key, value in vars(module).items()
                if key not in _OWN_STATE
            },
            [len(getattr(module, hooks)) for hooks in _HOOKS],
            inspect.signature(module.forward),
            str(getattr(module, "config", "")),
        )
        for name, module in model.named_modules()
    }
