"""The one table of methods. A built-in method is one file and one line of `BUILT_IN`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import VlmpruneError, nearest
from .act import ACT
from .base import Method
from .cdpruner import CDPruner
from .dart import Dart
from .declared import check_options
from .divprune import DivPrune
from .downsample import Downsample
from .fastv import FastV
from .fastv_oracle import FastVOracle
from .knorm import KNorm
from .none import Unpruned
from .prumerge import PruMerge
from .pyramiddrop import PyramidDrop
from .random import Random
from .sgl import SGL
from .sparsevlm import SparseVLM
from .uniform import Uniform
from .var import VAR
from .visionzip import VisionZip

M = TypeVar("M", bound=type[Method])

BUILT_IN: tuple[type[Method], ...] = (
    Unpruned,
    Random,
    Uniform,
    Downsample,
    FastV,
    FastVOracle,
    SGL,
    VAR,
    ACT,
    DivPrune,
    CDPruner,
    Dart,
    KNorm,
    VisionZip,
    PruMerge,
    PyramidDrop,
    SparseVLM,
)

_methods: dict[str, type[Method]] = {cls.name: cls for cls in BUILT_IN}


def list_methods() -> dict[str, type[Method]]:
    """Every registered method by name (a copy)."""
    return dict(_methods)


def register_method(name: str, method: M | None = None) -> M | Callable[[M], M]:
    """Add a method: `register_method(name="mine", method=Mine)` or `@register_method(name="mine")`.

    Args:
        name: lower-case letters, digits, `_` and `-`, starting with a letter; not taken yet.
        method: a subclass of `Pruner` or of another `Method`.
    Raises:
        VlmpruneError: a bad or taken name, no method class, or one that has a name already.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise VlmpruneError(
            f"{name!r} is no method name; use lower-case letters, digits, '_' and '-', starting with a letter."
        )
    if name in _methods:
        raise VlmpruneError(f"A method named {name!r} is registered already; choose another name.")

    def add(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, Method)) or cls.__module__ == Method.__module__:
            raise VlmpruneError(f"{cls!r} is no method class; derive it from vlmprune.Pruner.")
        if cls in _methods.values():  # its `name` is one
            raise VlmpruneError(f"{cls.__name__} is registered already as {cls.name!r}; use that name or a subclass.")
        check_options(cls, Method)
        cls.name = name
        _methods[name] = cls
        return cls

    return add if method is None else add(method)


def make_method(method: Method | str | type[Method], **options: Any) -> Method:
    """A method object from an object, a registered name with options, or a class with options.

    Raises:
        VlmpruneError: an unknown name or option.
    """
    if isinstance(method, Method):
        if options:
            raise VlmpruneError(
                f"The options {', '.join(sorted(options))} go with a method's name; set them on the "
                f"{type(method).__name__} object instead."
            )
        check_options(type(method), Method)
        return method
    if isinstance(method, str):
        if method not in _methods:
            raise VlmpruneError(f"There is no method {method!r}; {nearest(method, _methods)}")
        method = _methods[method]
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise VlmpruneError(f"{method!r} is no method; pass a method object or one of {', '.join(sorted(_methods))}.")
    check_options(method, Method)
    return method(**options)
