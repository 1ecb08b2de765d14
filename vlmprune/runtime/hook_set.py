"""What a session puts on a model's instances, and how it comes off again: in reverse order."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..hf.hooks import Hook, conceal, override_method


class HookSet:
    """Native hooks and overridden methods; true while any are on.

    A hook does nothing where `bypassed()`, or where the set was taken off while the model's forward ran.
    """

    def __init__(self, bypassed: Callable[[], bool]) -> None:
        self._bypassed = bypassed
        self._undo: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self._undo)

    def add(self, undo: Callable[[], None]) -> None:
        """Something else was put on; `undo` takes it off."""
        self._undo.append(undo)

    def pre(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call `function(module, args, kwargs)` before the module's forward, ahead of all other hooks."""
        self.add(conceal(module))
        self.add(module.register_forward_pre_hook(self._hook(function), with_kwargs=True, prepend=True).remove)

    def post(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call `function(module, args, kwargs, output)` after it."""
        self.add(module.register_forward_hook(self._hook(function), with_kwargs=True).remove)

    def override(self, instance: Any, name: str, around: Callable[..., Any]) -> None:
        """Put `around(original, *args, **kwargs)` in front of a method."""
        self.add(override_method(instance, name, around))

    def remove(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _hook(self, function: Callable[..., Any]) -> Hook:
        def run(module: nn.Module, *given: Any) -> Any:
            return None if self._bypassed() or not self._undo else function(module, *given)

        return Hook(run)
