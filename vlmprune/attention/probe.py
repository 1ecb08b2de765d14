"""The probe: attention statistics of chosen query rows beside the model's own, unchanged attention call.

A fused kernel (SDPA, FlashAttention) never writes the attention map. Only a few query rows are ever needed (FastV:
one a sample), so the probe lets the kernel run as it is and computes the softmax of those rows alone.

Attention modules look their kernel up by name in `self.config` at every call. `ProbedLayer` gives one module a copy of
its config that names our dispatcher; the language model's own config, and so its masks, stay untouched.

Shapes: B batch, S query length, T key length, H heads, R chosen rows, D head width.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
        query, key = (self.query, self.key) if gradient else (self.query.detach(), self.key.detach())
        return attention_rows(
            query,
            key,
            self.mask if isinstance(self.mask, Tensor) else None,
            rows,
            scaling=self.options["scaling"],
            causal=causal,
            softcap=self.options.get("softcap"),
            window=self.options.get("sliding_window"),
        )

    def visible(self, rows: Tensor) -> Tensor:
        """Which keys query rows [B, R] see: bool [B, 1 or H, R, T]."""
        mask = self.mask if isinstance(self.mask, Tensor) else None
        window = self.options.get("sliding_window")
        seen = visible_keys(mask, rows, self.query.shape[2], self.key.shape[2], window=window)
        # An additive mask: the dtype's lowest number hides a key, anything near zero is a bias.
        return seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2

    def of_heads(self, heads: list[int]) -> AttentionCall:
        """The same call of some query heads only, each with a key head of its own."""
        if len(heads) == self.query.shape[1]:
            return self
        shared = [head // (self.query.shape[1] // self.key.shape[1]) for head in heads]
        mask = self.mask
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] > 1:
            mask = mask[:, heads]
        return AttentionCall(self.query[:, heads], self.key[:, shared], self.value[:, shared], mask, self.options)


# Gets the call and its output [B, S, H, D]; what it returns, unless None, takes the output's place.
Observer = Callable[[AttentionCall, Tensor], Tensor | None]

_observers = threading.local()
_attached = 0
_attached_lock = threading.Lock()


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    *,
    scaling: float,
    causal: bool = True,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Softmax attention of chosen query rows, in fp32.

    Args:
        query: [B, H, S, D], rotary embedding applied. key: [B, H or fewer (grouped), T, D].
        mask: what the kernel got: 4-D bool (True = visible) or additive [B or 1, 1 or H, S, >= T], 2-D [B, T]
            padding mask (FlashAttention), or None.
        rows: [B, R] query positions 0..S-1.
        causal: whether rows see only keys up to themselves where the mask does not say so (None or 2-D).
        window: sliding window of kernels that apply it themselves (2-D masks or None).
    Returns:
        [B, H, R, T]; every row sums to 1.
    """
    batch, heads, queries, width = query.shape
    keys = key.shape[2]
    rows = rows.to(query.device)
    chosen = torch.gather(query, 2, rows[:, None, :, None].expand(-1, heads, -1, width))
    # Grouped queries: fold the group into the rows instead of repeating the keys.
    group = heads // key.shape[1]
    grouped = chosen.reshape(batch, key.shape[1], group * rows.shape[1], width)
    scores = (grouped.float() @ key.float().transpose(-1, -2)).reshape(batch, heads, rows.shape[1], keys) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    seen = visible_keys(mask, rows, queries, keys, causal=causal, window=window)
    scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen.float()
    return torch.softmax(scores, dim=-1)


def visible_keys(
    mask: Tensor | None, rows: Tensor, queries: int, keys: int, *, causal: bool = True, window: int | None = None
) -> Tensor:
    """What a kernel lets query rows [B, R] see: [B, 1 or H, R, keys], bool (True = visible) or additive.

    The arguments are those of `attention_rows`.
    """
    batch = len(rows)
    if mask is not None and mask.dim() == 4:
        picked = mask.expand(batch, -1, -1, -1)[..., :keys]
        return torch.gather(picked, 2, rows[:, None, :, None].expand(-1, picked.shape[1], -1, keys))
    column = torch.arange(keys, device=rows.device)
    row = (rows + (keys - queries))[:, :, None]
    visible = torch.ones(batch, rows.shape[1], keys, dtype=torch.bool, device=rows.device)
    if causal:
        visible &= column <= row
    if window is not None:
        visible &= column > row - window
    if mask is not None:
        visible &= mask.bool()[:, None, -keys:].to(rows.device)
    return visible[:, None]


def column_sums(weights: Tensor) -> Tensor:
    """Attention received by every key, mean over heads and sum over rows: [B, H, R, T] -> [B, T]."""
    return weights.mean(dim=1).sum(dim=1)


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel that the language model's own config names, then let this thread's observer read."""
    own: Any = module.config
    eager = sys.modules[type(module).__module__].eager_attention_forward
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(own.vlmprune_original._attn_implementation, eager)
    out, weights = kernel(module, query, key, value, attention_mask, **kwargs)
    observers: list[Observer] | None = getattr(_observers, "by_module", {}).get(module)
    if observers:
        call = AttentionCall(query, key, value, attention_mask, kwargs)
        for observer in observers:
            edited = observer(call, out)
            out = out if edited is None else edited
    return out, weights


def observe(module: nn.Module, observer: Observer) -> None:
    """Let `observer` read (and edit) the attention calls of `module` made by this thread, until `clear_observers()`.

    Several observers of a module see its calls in the order in which they came, each the output of the one before.
    """
    if not hasattr(_observers, "by_module"):
        _observers.by_module = {}
    _observers.by_module.setdefault(module, []).append(observer)


def clear_observers(modules: Iterable[nn.Module]) -> None:
    """Forget this thread's observers of these modules; called when a forward begins and when it ends."""
    by_module = getattr(_observers, "by_module", {})
    for module in modules:
        by_module.pop(module, None)


class ProbedLayer:
    """Route one attention module's calls through the dispatcher until `remove()`.

    The module's `config` attribute is exchanged for a copy; nothing else is touched. The dispatcher's name is entered
    into transformers' table of kernels (an added entry, no replacement) while any module is probed.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.original = module.config
        renamed: Any = copy.copy(self.original)
        renamed._attn_implementation_internal = DISPATCHER
        renamed.vlmprune_original = getattr(self.original, "vlmprune_original", self.original)  # probes may nest
        global _attached
        with _attached_lock:
            ALL_ATTENTION_FUNCTIONS[DISPATCHER] = _dispatch
            _attached += 1
        module.config = renamed

    def remove(self) -> None:
        global _attached
        self.module.config = self.original
        with _attached_lock:
            _attached -= 1
            if not _attached:
                del ALL_ATTENTION_FUNCTIONS[DISPATCHER]
