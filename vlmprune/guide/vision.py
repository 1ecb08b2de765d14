"""One vision pass for several forwards: a tower's outputs, recorded and given again."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..hf.compatibility import NOT_FOR_TOWERS
from ..hf.hooks import override_method


class VisionMemo:
    """What a vision tower returned, call by call, for replaying in a forward that would compute the same again.

    Whoever replays vouches that the inputs are the same; calls with other options (another feature layer asked for, for
    example) are computed. `hits`: calls answered from memory so far.
    """

    def __init__(self) -> None:
        self.hits = 0
        self._calls: list[tuple[dict[str, Any], list[Tensor], Any]] = []

    @contextmanager
    def recording(self, tower: nn.Module | None) -> Iterator[None]:
        """Remember what the tower returns to this thread within the block."""
        me = threading.get_ident()

        def remember(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            # Qwen writes into the output object it gets back.
            if threading.get_ident() == me:
                self._calls.append((*_options_and_tensors(args, kwargs), copy.copy(output)))

        with nullcontext() if tower is None else tower.register_forward_hook(remember, with_kwargs=True):
            yield

    @contextmanager
    def replaying(self, tower: nn.Module | None, rows: Sequence[Tensor] = ()) -> Iterator[None]:
        """Answer this thread's calls of the tower, if there is one, within the block from memory, in the order they
        were recorded in.

        Args:
            rows: the entries of the recorded inputs' first axis that may be asked for now: of images, of videos; empty
                where all are. Where they are not (some towers get the images of all samples, whose pixels have an axis
                of samples), and where an output has another first axis, the tower runs.
        """
        left, me = iter(self._calls), threading.get_ident()

        def forward(compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != me:
                return compute(*args, **kwargs)
            now, asked = _options_and_tensors(args, kwargs)
            found = None
            for options, before, output in left:
                if now == options:
                    found = _recalled(before, output, rows, asked)
                if found is not None or not rows:  # of some samples there may be no images, but videos, or the reverse
                    break
            self.hits += found is not None
            return compute(*args, **kwargs) if found is None else found

        undo = None if tower is None else override_method(tower, "forward", forward)
        try:
            yield
        finally:
            if undo is not None:
                undo()


def _options_and_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    options = {k: v for k, v in kwargs.items() if not isinstance(v, Tensor) and k not in NOT_FOR_TOWERS}
    return options, tensors


def _recalled(before: list[Tensor], output: Any, rows: Sequence[Tensor], asked: list[Tensor]) -> Any:
    """What a recorded call returned of what is asked for now; None where that is something else."""
    same = [one.shape for one in asked] == [one.shape for one in before]
    # With `rows` they are compared, since an image and a video may have as many patches.
    if same and (not rows or all(torch.equal(a.to(b), b) for a, b in zip(asked, before, strict=True))):
        return copy.copy(output)
    for some in rows:
        if _holds(before, some, asked):
            with suppress(LookupError):
                return take_rows(output, some, len(before[0]))
    return None


def _holds(before: list[Tensor], rows: Tensor, asked: list[Tensor]) -> bool:
    """Whether these rows of the pixels of a recorded call, its first tensor, are what is asked for now."""
    if not before or not asked or not len(rows) or int(rows.max()) >= len(before[0]):
        return False
    own = before[0][rows.to(before[0].device)]
    return own.shape == asked[0].shape and torch.equal(own.to(asked[0]), asked[0])


def take_rows(output: Any, rows: Tensor, size: int) -> Any:
    """The same rows of every tensor in a tower's output.

    Raises:
        LookupError: a tensor's first axis is not `size` long.
    """

    def take(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        if part.shape[0] != size:
            raise LookupError(f"{tuple(part.shape)} has no first axis of {size}")
        return part[rows.to(part.device)]

    return tree_map(take, output)


class SharedTower:
    """Whether two models' vision towers compute the same: asked once with care, later only whether weights changed."""

    def __init__(self, one: Any, other: Any) -> None:
        self._towers = (one, other)
        self._version: list[int] | None = None
        self._equal = bool(self)

    def __bool__(self) -> bool:
        if None in self._towers:
            return False
        version = [p._version for tower in self._towers for p in tower.parameters()]
        if version != self._version and (self._version is None or self._equal):
            self._version, self._equal = version, _equal(*self._towers)
        return self._equal


def _equal(one: Any, other: Any) -> bool:
    kernels = [getattr(getattr(tower, "config", None), "_attn_implementation", None) for tower in (one, other)]
    if type(one) is not type(other) or kernels[0] != kernels[1]:
        return False
    ours, theirs = dict(one.state_dict()), dict(other.state_dict())
    if ours.keys() != theirs.keys():
        return False
    return all(
        value.dtype == theirs[name].dtype and value.device == theirs[name].device and torch.equal(value, theirs[name])
        for name, value in ours.items()
    )
