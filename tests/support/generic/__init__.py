"""Families without a declared adapter, built tiny: each group of types has a module with their configs and its facts.

`MAKERS`: the tiny config of a type that the rule of `default_config` does not serve; facts of published checkpoints
(windows, layer patterns, shared layers, experts, rotary kinds) with their source stand beside it. `FORMS`: how a type
wants the features of images: a "list" of [n, D] (the default), or one tensor, "flat" [N, D] or "stack" [images, n, D].
`HANDED`: types whose features are handed over in a way of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from . import axes, deepstack, discrete, gemma, hybrids, indexed, llama4, moe, plain, queries
from .common import IMAGE, TOKENS, build_from, default_config, hand_over, make_generic_inputs

__all__ = ["IMAGE", "TOKENS", "build_generic", "make_generic_inputs", "tiny_config"]

_MODULES: tuple[Any, ...] = (plain, axes, moe, discrete, llama4, deepstack, queries, indexed, hybrids, gemma)


def _all(name: str) -> dict[str, Any]:
    """What the modules say of their types under this name."""
    return {kind: value for module in _MODULES for kind, value in getattr(module, name, {}).items()}


MAKERS: dict[str, Callable[[], Any]] = _all("MAKERS")
FORMS: dict[str, str] = _all("FORMS")
HANDED: dict[str, Callable[[PreTrainedModel], None]] = _all("HANDED")


def tiny_config(model_type: str) -> Any:
    """The type's tiny config."""
    return MAKERS[model_type]() if model_type in MAKERS else default_config(model_type)


def build_generic(model_type: str, *, attn: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A tiny random model of the type, whose image features are handed over; the same seed gives the same weights."""
    model = build_from(tiny_config(model_type), attn=attn, seed=seed)
    if model_type in HANDED:
        HANDED[model_type](model)
    else:
        hand_over(model, FORMS.get(model_type, "list"))
    return model
