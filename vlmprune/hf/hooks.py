"""What is put on a model's instances: hooks and shadowed methods; copies and pickles of a module leave all of it out.

A module that carries anything of ours has a `__getstate__` of its own, on the instance, which is what `copy.copy`,
`copy.deepcopy`, `pickle` and `torch.save` ask. So a copy of the model, or of any part of it, is the plain thing.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from ..errors import VlmpruneError

HANDLE = "_vlmprune_handle"
_GETSTATE = "__getstate__"
_MISSING = object()


class Hook:
    """A hook function of ours."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    # Hooks look at counts and clocks, which no graph can hold: run whole, each costs one graph break, not several.
    @torch.compiler.disable
    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block no module of the model drops anything out."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def override_method(instance: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Put `around(original, *args, **kwargs)` in front of a method, on this instance only; returns what undoes it."""
    own = instance.__dict__.get(name, _MISSING)
    original = getattr(instance, name)

    on = [True]
    plain = getattr(original, "__func__", None)

    def run(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs) if on else original(*args, **kwargs)

    call: Any
    if own is _MISSING and plain is not None:
        # A bound method, as the original is: its copies and pickles are the method of the instance's copy.
        @functools.wraps(plain)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return run(*args, **kwargs) if self is instance else plain(self, *args, **kwargs)

        method.__dict__["vlmprune_original"] = own
        call = MethodType(method, instance)
    else:
        call = functools.wraps(original)(run)
        call.__dict__["vlmprune_original"] = own
    instance.__dict__[name] = call

    def undo() -> None:
        on.clear()
        if instance.__dict__.get(name) is not call:  # accelerate has put its own `forward` around this one since
            return
        delattr(instance, name)
        if own is not _MISSING:
            setattr(instance, name, own)

    return undo


def conceal(module: nn.Module) -> Callable[[], None]:
    """Let copies of this module leave out what is ours; returns what undoes it."""
    if _GETSTATE in module.__dict__:
        return lambda: None
    module.__dict__[_GETSTATE] = functools.partial(_State, module)
    return functools.partial(delattr, module, _GETSTATE)


def refuse_replica(*args: Any, **kwargs: Any) -> None:
    """What a replica of a wrapped model does: raise."""
    raise VlmpruneError(
        "torch.nn.DataParallel calls replicas of the model, which a wrap cannot follow; use "
        "torch.nn.parallel.DistributedDataParallel, or unwrap the model first."
    )


def replica(original: Callable[..., Any]) -> Any:
    """A replica of a wrapped model, whose `generate` refuses too; the original's would run on the original."""
    made = original()
    made.__dict__["generate"] = made.__dict__["forward"] = refuse_replica
    return made


class _State(dict[str, Any]):
    """A module's attributes without what is ours.

    The submodules of a shallow copy would be those of the original, which carry something of ours: as a mapping, which
    is what `copy.copy` takes over, it holds modules of its own over the same tensors. A deep copy or a pickle is made
    of the module, whose submodules speak for themselves.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(_structure(module, {}))
        self._module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(_plain_state(self._module), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (), None, None, iter(_plain_state(self._module).items())


def _plain_state(module: nn.Module) -> dict[str, Any]:
    """What the module's class makes of itself for a copy, without what is ours."""
    state: dict[str, Any] = dict(type(module).__getstate__(module))
    for name in (_GETSTATE, HANDLE):
        state.pop(name, None)
    ours = set()
    for name, value in list(state.items()):
        while (original := _original(value)) is not None:
            value = original
        if value is _MISSING:
            del state[name]
        elif isinstance(value, OrderedDict) and name.endswith("_hooks"):
            ours |= {key for key, hook in value.items() if isinstance(hook, Hook)}
            state[name] = OrderedDict((key, hook) for key, hook in value.items() if not isinstance(hook, Hook))
        else:
            state[name] = value
    for name in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):
        state[name] = OrderedDict((key, value) for key, value in state[name].items() if key not in ours)
    return state


def _original(value: Any) -> Any:
    """What one of our stand-ins (a shadowing function, a probed config) stands before; None for anything else."""
    kept = getattr(type(value), "vlmprune_original", None)  # a slot: its class says that there is one
    if kept is None and callable(value):
        return getattr(value, "__dict__", {}).get("vlmprune_original")
    return None if kept is None else value.vlmprune_original


def _structure(module: nn.Module, made: dict[nn.Module, nn.Module]) -> dict[str, Any]:
    """The plain attributes of a module over submodules of its own, which share the tensors of the module's."""
    own = _plain_state(module)
    # Copied too: a hook that is put on either structure later must not appear on the other.
    state = {name: value.copy() if isinstance(value, dict) else value for name, value in own.items()}
    for name, child in own["_modules"].items():
        if child is not None:
            if child not in made:
                kind: Any = type(child)
                made[child] = kind.__new__(kind)
                made[child].__dict__.update(_structure(child, made))
            state["_modules"][name] = made[child]
    return state
