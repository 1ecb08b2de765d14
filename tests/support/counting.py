"""A pretended accelerator on the CPU that counts how often a program would wait for it.

Every tensor of it is an ordinary CPU tensor in a wrapper that names another device, as `torch.compile`'s fake tensors
do: programs branch on the device as they would, and what brings data to the host is seen and counted.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

FAR = torch.device("meta")  # the only other device that every build of PyTorch has
WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class Far(Tensor):
    """A tensor on the pretended device; `near` has its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=FAR
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {}, Counter())


class _Past(TorchFunctionMode):
    """Ways past the dispatcher: `torch.tensor([...], device=...)`, `tolist`, and lists as an index."""

    def __init__(self, counted: Counter[str]) -> None:
        super().__init__()
        self.counted = counted

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if function is torch.tensor and device is not None and torch.device(device).type == FAR.type:
            return Far(function(*args, **{**kwargs, "device": "cpu"}))
        if function is Tensor.tolist and isinstance(args[0], Far):
            return args[0].cpu().tolist()
        if function is Tensor.__getitem__ and isinstance(args[0], Far):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            lists = [isinstance(one, list) for one in index]
            self.counted["a list as an index"] += sum(lists)
            made = (Far(torch.tensor(one)) if listed else one for one, listed in zip(index, lists, strict=True))
            return args[0][tuple(made)] if any(lists) else function(*args, **kwargs)
        return function(*args, **kwargs)


class Waits(TorchDispatchMode):
    """Runs operations on the pretended device; `counted` says which made the host wait, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self._past = _Past(self.counted)

    def __enter__(self) -> Waits:
        self._past.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._past.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {}, self.counted)


def run(function: Any, args: Any, kwargs: dict[str, Any], counted: Counter[str]) -> Any:
    """The operation on the CPU; what comes out lies where it would lie."""
    involved = any(isinstance(leaf, Far) for leaf in tree_leaves((args, kwargs)))
    asked = kwargs.get("device")
    stays = involved if asked is None else torch.device(asked).type == FAR.type
    if involved and (function in WAITS or not stays or by_mask(function, args)):
        counted[str(function)] += 1
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    near_args, near_kwargs = tree_map_only(Far, lambda one: one.near, (args, kwargs))
    out = function(*near_args, **near_kwargs)
    if involved and function._schema.is_mutable and isinstance(args[0], Far):
        return args[0]
    return tree_map_only(Tensor, Far, out) if stays else out


def by_mask(function: Any, args: Any) -> bool:
    """Whether an indexing has a mask in it: how much comes out is known only when the mask is there."""
    if function not in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
        return False
    return any(isinstance(one, Far) and one.dtype == torch.bool for one in args[1])


def far(value: Any) -> Any:
    """Tensors of nested containers, or a model's copy, on the pretended device."""
    if not isinstance(value, nn.Module):
        return tree_map_only(Tensor, Far, value)
    moved = copy.deepcopy(value)
    for module in moved.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(Far(parameter.data), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Far(buffer)
    return moved
