"""Hooks that copies of a model do not inherit, and methods shadowed on one instance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


class Hook:
    """A hook function that a deep copy or a pickle of the model turns into nothing: copies see the plain model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    # Hooks look at counts and clocks, which no graph can hold: run whole, each costs one graph break, not several.
    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> str:
        return "_nothing"


def _nothing(*args: Any) -> None:
    return None


def shadow(instance: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Put `around(original, *args, **kwargs)` in front of a method, on this instance only; returns what undoes it."""
    own = instance.__dict__.get(name)
    original = getattr(instance, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(instance, name, call)

    def undo() -> None:
        delattr(instance, name)
        if own is not None:
            setattr(instance, name, own)

    return undo
