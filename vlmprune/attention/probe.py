"""The probe: attention statistics of chosen query rows beside the model's own, unchanged attention call.

A fused kernel (SDPA, FlashAttention) never writes the attention map. Only a few query rows are ever needed (FastV:
one a sample), so the probe lets the kernel run as it is and computes the softmax of those rows alone.

Attention modules look their kernel up by name in `self.config` at every call. `ProbedLayer` gives one module a view of
its config that names our dispatcher; the language model's own config, and so its masks, stay untouched.

Shapes: B batch, S query length, T key length, H heads, R chosen rows, D head width.
"""

import copy
import functools
import inspect
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
from ..hf.grouped_layer import GroupedLayer
from ..hf.hooks import conceal
from ..hf.per_thread import PerThread
from ..ops.attention_rows import Visibility, attention_rows, visible_keys
from ..ops.column_sums import column_sums as received
from ..ops.gather import gather_entries
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

    @property
    def sees_all(self) -> bool:
        """Whether a call of a single row has nothing that hides a key from it."""
        return self.mask is None and self.options.get("sliding_window") is None

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

    def narrows(self, *, by_head: bool = False) -> bool:
        """Whether `of_entries` can follow its mask; `by_head`: with other entries in every head."""
        dims = (4,) if by_head else (2, 4)
        return self.mask is None or (isinstance(self.mask, Tensor) and self.mask.dim() in dims)

    def of_entries(self, index: Tensor) -> "AttentionCall":
        """The same call of a single row over some entries: `index` [B, K], or [B, G, K] of each key head its own."""
        mask, length = self.mask, self.key.shape[2]
        if isinstance(mask, Tensor) and mask.dim() == 2:
            mask = mask.expand(len(index), -1).gather(1, index)
        elif isinstance(mask, Tensor):
            heads = mask.shape[1] if index.dim() == 2 else self.query.shape[1]
            mask = mask[..., :length].expand(len(index), heads, -1, -1)
            by_head = index[:, None] if index.dim() == 2 else index.repeat_interleave(heads // index.shape[1], dim=1)
            mask = mask.gather(3, by_head[:, :, None].expand(-1, heads, mask.shape[2], -1))
        return replace(self, key=gather_entries(self.key, index), value=gather_entries(self.value, index), mask=mask)


def _heads(states: Tensor, heads: list[int]) -> Tensor:
    """Some heads of [B, H, ...]; a list as an index would be copied to the device in every layer, and waited for."""
    return torch.stack([states[:, head] for head in heads], dim=1)


# Gets the call and its output [B, S, H, D]; what it returns, unless None, takes the output's place.
Observer = Callable[[AttentionCall, Tensor], Tensor | None]
# Gets a call of a single row and its kernel, not run yet; what it returns, unless None, is the output.
StepObserver = Callable[[AttentionCall, Callable[[], Tensor]], Tensor | None]
# Gets a call whose kernel has not run yet, and returns the one that runs in its place.
Exchange = Callable[[AttentionCall], AttentionCall]


class _Reached(Exception):
    """An attention call that is looked at ahead of the layer's run, which ends with it."""

    def __init__(self, call: AttentionCall) -> None:
        self.call = call


_ahead: PerThread[set[nn.Module]] = PerThread(set)
_observers: PerThread[dict[nn.Module, list[tuple[Observer, StepObserver | None]]]] = PerThread(dict)
_exchanges: PerThread[dict[nn.Module, Exchange]] = PerThread(dict)
_groups: PerThread[dict[nn.Module, GroupedLayer]] = PerThread(dict)
_attached = 0
_attached_lock = threading.Lock()


@functools.cache
def _eager_of(kind: type[Any]) -> Callable[..., Any] | None:
    """The eager kernel of an attention class: beside it, or beside one that it derives from."""
    beside = (getattr(sys.modules[one.__module__], "eager_attention_forward", None) for one in kind.__mro__)
    return next((kernel for kernel in beside if kernel is not None), None)


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel that the language model's own config names, then let this thread's observer read."""
    if module in _ahead.own:
        # A static cache has room for more than the prompt, and so has the mask; here there is no cache.
        seen = attention_mask[..., : key.shape[2]] if isinstance(attention_mask, Tensor) else attention_mask
        raise _Reached(AttentionCall(query, key, value, seen, kwargs))
    own: Any = module.config
    kind: Any = type(module)
    eager = _eager_of(kind)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(own.vlmprune_original._attn_implementation, eager)
    if kernel is None:
        raise VlmpruneError(
            f"The eager attention of a {type(module).__name__} is not found beside its class, so it cannot be read; "
            "load the model with attn_implementation='sdpa'."
        )
    call = AttentionCall(query, key, value, attention_mask, kwargs)
    if (exchange := _exchanges.own.get(module)) is not None:
        call = exchange(call)
    observers = _observers.own.get(module, [])
    if (layer := _groups.own.get(module)) is not None:
        if not observers and kwargs.get("s_aux") is None:
            return in_groups(module, kernel, call, layer), None
        # What reads or edits the attention of all heads gets them side by side.
        key, value = layer.whole()
        mask = call.mask if call.mask is not None else layer.seen_of_all(query.shape[1] // key.shape[1])
        call = replace(call, key=key, value=value, mask=mask)
    run = functools.partial(kernel, module, call.query, call.key, call.value, call.mask, **kwargs)
    step = observers[0][1] if len(observers) == 1 and query.shape[2] == 1 and kernel is not eager else None
    if step is not None and (made := step(call, lambda: run()[0])) is not None:
        return made, None
    out, weights = run()
    for observer, _ in observers:
        edited = observer(call, out)
        out = out if edited is None else edited
    return out, weights


def in_groups(module: nn.Module, kernel: Callable[..., Any], call: AttentionCall, layer: GroupedLayer) -> Tensor:
    """The output [B, S, H, D] of a call whose cache holds its heads in groups: one kernel for each."""
    queries, length = layer.groups(call.query, 1), layer.length
    if call.mask is None:  # of a single row
        masks = layer.seen(call.query.shape[1] // layer.order.shape[1])
    else:
        wide = layer.groups(call.mask.expand(len(call.query), call.query.shape[1], -1, -1), 1)
        masks = [mask[..., length - part.keys.shape[2] : length] for part, mask in zip(layer.parts, wide, strict=True)]
    outputs = [
        kernel(module, query, part.keys, part.values, mask, **call.options)[0]
        for part, query, mask in zip(layer.parts, queries, masks, strict=True)
    ]
    return layer.together(outputs, 2)


def observe(module: nn.Module, observer: Observer, step: StepObserver | None = None) -> None:
    """Let `observer` read (and edit) the attention calls of `module` made by this thread, until `clear_observers()`.

    One that is alone is asked by `step` first, before the fused kernel of a single row runs.

    Several observers of a module see its calls in the order in which they came, each the output of the one before.
    """
    _observers.own.setdefault(module, []).append((observer, step))


def exchange_calls(module: nn.Module, exchange: Exchange) -> None:
    """Let `exchange` replace the attention calls of `module` made by this thread, until `clear_observers()`."""
    _exchanges.own[module] = exchange


def group_calls(module: nn.Module, layer: GroupedLayer) -> None:
    """Let the next attention call of `module` made by this thread run over the groups of a layer of its cache."""
    layer.armed = True
    _groups.own[module] = layer


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
    """Forget this thread's observers and exchanges of these modules; called when a forward begins and when it ends."""
    for module in modules:
        _observers.own.pop(module, None)
        _exchanges.own.pop(module, None)
        _groups.own.pop(module, None)


class _Name(str):
    """Our dispatcher's name where a kernel is looked up by it, and equal to the name of the model's own kernel: some
    modules mask or reshape by which one it is (the indexed attention of Mistral Large 4 under "eager" and "sdpa")."""

    own: str

    def __eq__(self, other: object) -> bool:
        return other == self.own or str.__eq__(self, other) is True

    __ne__ = str.__ne__  # `if name != "eager"` guards a look-up
    __hash__ = str.__hash__


@functools.cache
def _name_beside(own: str) -> _Name:
    name = _Name(DISPATCHER)
    name.own = own
    return name


def _names_kernels(module: nn.Module) -> bool:
    """Whether a module's own code tells kernels apart by name, other than by looking one up."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    constants = () if code is None else code.co_consts
    named = [one for some in constants for one in (some if isinstance(some, tuple | frozenset) else (some,))]
    return any(one in ("eager", "sdpa") for one in named)


@functools.cache
def _view_of(kind: type[Any], named: bool) -> type[Any]:
    """A config class whose instances show another config's attributes, but our kernel; their copies are that other's.

    `vlmprune_original`, the other config, has a slot: the attributes are the other's very dictionary.
    """

    class View(kind):
        __slots__ = ("vlmprune_original",)

        # Only where it is asked for: torch.compile cannot follow a name that equals two.
        _attn_implementation = property(
            lambda self: _name_beside(self.vlmprune_original._attn_implementation) if named else DISPATCHER
        )

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
        view = object.__new__(_view_of(kind, _names_kernels(module)))
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
