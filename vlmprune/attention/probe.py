"""The probe: attention statistics of chosen query rows beside the model's own, unchanged attention call.

A fused kernel (SDPA, FlashAttention) never writes the attention map. Only a few query rows are ever needed (FastV:
one a sample), so the probe lets the kernel run as it is and computes the softmax of those rows alone.

Attention modules look their kernel up by name in `self.config` at every call. `ProbedLayer` gives one module a view of
its config that names our dispatcher; the language model's own config, and so its masks, stay untouched.

Shapes: B batch, S query length, T key length, H heads, R chosen rows, D head width.
"""

import copy
import functools
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import VlmpruneError
from ..hf.hooks import conceal
from ..hf.per_thread import PerThread
from ..ops.attention_rows import Visibility, attention_rows, visible_keys
from ..ops.column_sums import column_sums as received
from ..ops.redistribution import redistribute
from .masks import block_rows

DISPATCHER = "vlmprune_probe"


@dataclass(frozen=True)
class AttentionCall:
    """What an attention kernel was given: rotated `query` [B, H, S, D], `key` and `value` [B, H or fewer, T, D] (the
    cache's entries included), its `mask`, and its other arguments `options`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: dict[str, Any]

    def weights(self, rows: Tensor, *, causal: bool = True, gradient: bool = False) -> Tensor:
        """Softmax attention of query rows [B, R] in fp32: [B, H, R, T]; by default without a gradient."""
        call, rows, causal = self._evaluated(rows, causal)
        query, key = (call.query, call.key) if gradient else (call.query.detach(), call.key.detach())
        return attention_rows(query, key, rows, call._seen(causal))

    def received(self, rows: Tensor, weight: Tensor | None = None, *, causal: bool = True) -> Tensor:
        """Attention that each key gets from query rows [B, R], summed over heads and rows (times their weight [B, R])
        in fp32: [B, T]; no gradient, and on a GPU no map."""
        call, rows, causal = self._evaluated(rows.to(self.query.device), causal)
        weight = None if weight is None else weight.to(rows.device)
        return received(call.query.detach(), call.key.detach(), rows, call._seen(causal), weight)

    def _evaluated(self, rows: Tensor, causal: bool) -> tuple["AttentionCall", Tensor, bool]:
        """The call, rows and whether it is causal; FlexAttention's function of positions is evaluated for those rows,
        and the call is of them alone."""
        if not isinstance(self.mask, BlockMask):
            return self, rows, causal
        rows = rows.to(self.query.device)
        seen = block_rows(self.mask, rows, self.key.shape[2])
        index = rows[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[-1])
        every = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
        return replace(self, query=torch.gather(self.query, 2, index), mask=seen), every, False

    def redistribute(
        self, output: Tensor, rows: Tensor, sinks: Tensor, visual: Tensor, *, p: float, rho: float, gate: float
    ) -> Tensor:
        """VAR's correction of this call's output [B, S, H, D]: see `ops.redistribution`."""
        states = (output, self.query, self.key, self.value)
        return redistribute(*states, rows, sinks, visual, self._seen(), p=p, rho=rho, gate=gate)

    def _seen(self, causal: bool = True) -> Visibility:
        """What a row may see."""
        if not isinstance(self.mask, Tensor | None):
            raise VlmpruneError(
                f"Attention masks of type {type(self.mask).__name__} cannot be read; load the model with "
                "attn_implementation='sdpa'."
            )
        given = self.options
        softcap, window, sinks = given.get("softcap"), given.get("sliding_window"), given.get("s_aux")
        return Visibility(given["scaling"], self.mask, causal, softcap, window, sinks)

    def visible(self, rows: Tensor) -> Tensor:
        """Which keys query rows [B, R] see: bool [B, 1 or H, R, T]."""
        seen = visible_keys(rows, self.query.shape[2], self.key.shape[2], self._seen())
        # An additive mask: the dtype's lowest number hides a key, anything near zero is a bias.
        return seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2

    def of_heads(self, heads: list[int]) -> "AttentionCall":
        """The same call of some query heads only, each with a key head of its own."""
        if len(heads) == self.query.shape[1]:
            return self
        shared = [head // (self.query.shape[1] // self.key.shape[1]) for head in heads]
        mask = self.mask
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] > 1:
            mask = _heads(mask, heads)
        query, key, value = _heads(self.query, heads), _heads(self.key, shared), _heads(self.value, shared)
        return AttentionCall(query, key, value, mask, self.options)


def _heads(states: Tensor, heads: list[int]) -> Tensor:
    """Some heads of [B, H, ...]; a list as an index would be copied to the device in every layer, and waited for."""
    return torch.stack([states[:, head] for head in heads], dim=1)


# Gets the call and its output [B, S, H, D]; what it returns, unless None, takes the output's place.
Observer = Callable[[AttentionCall, Tensor], Tensor | None]
# Gets a call of a single row and its kernel, not run yet; what it returns, unless None, is the output.
StepObserver = Callable[[AttentionCall, Callable[[], Tensor]], Tensor | None]

class _Reached(Exception):
    """An attention call that is looked at ahead of the layer's run, which ends with it."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call


_ahead: PerThread[set[nn.Module]] = PerThread(set)
_observers: PerThread[dict[nn.Module, list[tuple[Observer, StepObserver | None]]]] = PerThread(dict)
_attached = 0
_attached_lock = threading.Lock()


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel that the language model's own config names, then let this thread's observer read."""
    if module in _ahead.own:
        # A static cache has room for more than the prompt, and so has the mask; here there is no cache.
        seen = attention_mask[..., : key.shape[2]] if isinstance(attention_mask, Tensor) else attention_mask
        raise _Reached(AttentionCall(query, key, value, seen, kwargs))
    own: Any = module.config
    eager = sys.modules[type(module).__module__].eager_attention_forward
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(own.vlmprune_original._attn_implementation, eager)
    run = functools.partial(kernel, module, query, key, value, attention_mask, **kwargs)
    observers = _observers.own.get(module, [])
    call = AttentionCall(query, key, value, attention_mask, kwargs)
    step = observers[0][1] if len(observers) == 1 and query.shape[2] == 1 and kernel is not eager else None
    if step is not None and (made := step(call, lambda: run()[0])) is not None:
        return made, None
    out, weights = run()
    for observer, _ in observers:
        edited = observer(call, out)
        out = out if edited is None else edited
    return out, weights


def observe(module: nn.Module, observer: Observer, step: StepObserver | None = None) -> None:
    """Let `observer` read (and edit) the attention calls of `module` made by this thread, until `clear_observers()`.

    One that is alone is asked by `step` first, before the fused kernel of a single row runs.

    Several observers of a module see its calls in the order in which they came, each the output of the one before.
    """
    _observers.own.setdefault(module, []).append((observer, step))


def look_ahead(module: nn.Module, run: Callable[[], Any]) -> AttentionCall:
    """The call that the probed attention `module` comes to in `run`, which ends there: no kernel runs, nor a gradient.

    Raises:
        VlmpruneError: it comes to none.
    """
    _ahead.own.add(module)
    try:
        with torch.no_grad():
            run()
    except _Reached as reached:
        return reached.call
    finally:
        _ahead.own.discard(module)
    raise VlmpruneError(
        f"A {type(module).__name__} ran without calling an attention function, so what it would attend to cannot be "
        "read ahead; use a method that reads the layer before, such as 'fastv'."
    )


def clear_observers(modules: Iterable[nn.Module]) -> None:
    """Forget this thread's observers of these modules; called when a forward begins and when it ends."""
    for module in modules:
        _observers.own.pop(module, None)


@functools.cache
def _view_of(kind: type[Any]) -> type[Any]:
    """A config class whose instances show another config's attributes, but our kernel; their copies are that other's.

    `vlmprune_original`, the other config, has a slot: the attributes are the other's very dictionary.
    """

    class View(kind):
        __slots__ = ("vlmprune_original",)

        _attn_implementation = property(lambda self: DISPATCHER)

        def __reduce_ex__(self, protocol: Any) -> Any:
            return copy.copy, (self.vlmprune_original,)

    View.__name__, View.__qualname__, View.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return View


class ProbedLayer:
    """Route one attention module's calls through the dispatcher until `remove()`.

    The module's `config` attribute is exchanged for a view of it; nothing else is touched. The dispatcher's name is
    entered into transformers' table of kernels (an added entry, no replacement) while any module is probed.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.original = module.config
        original = getattr(self.original, "vlmprune_original", self.original)  # probes may nest
        kind: Any = type(original)
        view = object.__new__(_view_of(kind))
        object.__setattr__(view, "__dict__", original.__dict__)
        object.__setattr__(view, "vlmprune_original", original)
        global _attached
        with _attached_lock:
            ALL_ATTENTION_FUNCTIONS[DISPATCHER] = _dispatch
            _attached += 1
        module.config = view
        self._reveal = conceal(module)

    def remove(self) -> None:
        global _attached
        self._reveal()
        self.module.config = self.original
        with _attached_lock:
            _attached -= 1
            if not _attached:
                del ALL_ATTENTION_FUNCTIONS[DISPATCHER]
