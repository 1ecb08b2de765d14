"""The table of methods by name: the built-in ones and those that users register."""

import re
from collections.abc import Callable
from pkgutil import resolve_name
from typing import Any, TypeVar

from ..errors import VlmpruneError, nearest
from . import BUILT_IN
from .base import Method
from .declared import check_options

M = TypeVar("M", bound=type[Method])

CLASSES: tuple[type[Method], ...] = tuple(
    resolve_name(f"{__package__}.{':'.join(name.rsplit('.', 1))}") for name in BUILT_IN
)
_methods: dict[str, type[Method]] = {cls.name: cls for cls in CLASSES}


def list_methods() -> dict[str, type[Method]]:
    """Every registered method by name (a copy)."""
    return dict(_methods)


def register_method(name: str, method: M | None = None) -> M | Callable[[M], M]:
    """Add a method: `register_method(name="mine", method=Mine)` or `@register_method(name="mine")`.

    Args:
        name: lower-case letters, digits, `_` and `-`, starting with a letter; not taken yet.
        method: a subclass of `Pruner` or of another `Method`.
    Raises:
        VlmpruneError: a bad or taken name, or a class that is no method or has a name already.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise VlmpruneError(
            f"name must be lower-case letters, digits, '_' and '-' that start with a letter, got {name!r:.60}."
        )
    if name in _methods:
        raise VlmpruneError(f"A method named {name!r} is registered already; choose another name.")

    def add(cls: M) -> M:
        if not (isinstance(cls, type) and issubclass(cls, Method)) or cls.__module__ == Method.__module__:
            raise VlmpruneError(f"method must be a class derived from vlmprune.Pruner, got {cls!r:.60}.")
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
        return method
    if isinstance(method, str):
        if method not in _methods:
            raise VlmpruneError(f"There is no method {method!r}; {nearest(method, _methods)}")
        method = _methods[method]
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise VlmpruneError(f"method must be a method object or one of {', '.join(_methods)}, got {method!r:.60}.")
    return method(**options)
