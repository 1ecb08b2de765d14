"""What a decoder layer's rows may see, read from the mask that the model itself made, and gathered for a pruned prompt.

A mask is a 4-D tensor (bool: True = visible, or additive), a 2-D padding mask (FlashAttention), FlexAttention's
`BlockMask` (a function of positions), or None (plain causal attention). Windows, chunks and bidirectional blocks are in
it already, counted in positions of the unpruned sequence, so nothing here asks a config for them but `windows_of`, for
kernels that apply a window by themselves.

Shapes: B batch, S sequence before pruning, R rows, P columns, W width of a mask, T keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    create_causal_mask,
    create_chunked_causal_mask,
    create_sliding_window_causal_mask,
)

from ..errors import VlmpruneError
from ..hf.compatibility import CACHE

IN_MASK = ("sdpa", "eager", "flex_attention")  # kernels that get windows in their mask


@dataclass(frozen=True)
class Sizes:
    """Stands for a cache where transformers' mask functions only ask for the lengths: `length` keys from `offset` on,
    and the position `first` of the first query."""

    length: int
    offset: int
    first: int

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.length, self.offset

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.first


@dataclass(frozen=True)
class Window:
    """How far back a layer sees: `size` positions, or, `chunked`, the start of the chunk of that size."""

    size: int
    chunked: bool = False

    def pairs(self, rows: int | Tensor) -> int:
        """Query-key pairs that a sample's rows see: so many side by side, or at ascending positions [R], the sample's
        first token being 0."""
        positions = torch.arange(rows) if isinstance(rows, int) else rows
        seen = torch.arange(1, len(positions) + 1) - torch.searchsorted(positions, self.first(positions))
        return int(seen.sum())

    def first(self, positions: Tensor) -> Tensor:
        """The first position that each of these sees."""
        return positions // self.size * self.size if self.chunked else positions - self.size + 1


def windows_of(attentions: Sequence[Any], config: Any) -> list[Window | None]:
    """The window of every decoder layer, None where a layer sees everything before it, or does not attend (None).

    The kind of a layer is the one by which transformers makes its cache and its mask, from the config: `layer_types`,
    or one window or chunk size for all layers (Mistral, Phi-3, Mixtral). EXAONE 4's modules all have a window, its full
    layers too. How large a window is the module knows best.
    """
    sliding, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    everywhere = "sliding_attention" if sliding else "chunked_attention" if chunk else None
    kinds = getattr(config, "layer_types", None) or [everywhere] * len(attentions)
    windows: list[Window | None] = []
    for attention, kind in zip(attentions, kinds, strict=True):
        if attention is None:
            windows.append(None)
            continue
        if kind == "chunked_attention" and chunk:
            windows.append(Window(int(chunk), chunked=True))
            continue
        size = None if kind == "full_attention" else getattr(attention, "sliding_window", sliding)
        windows.append(Window(int(size)) if size else None)
    return windows


def sources_of(attentions: Sequence[Any]) -> list[int]:
    """Of every decoder layer the one whose keys and values it attends to: its own, or those that an earlier one of its
    kind stored for all later ones to use (Gemma 3n and 4)."""
    sources: list[int] = []
    stored: dict[tuple[Any, Any], int] = {}
    for i, attention in enumerate(attentions):
        kind = (getattr(attention, "layer_type", None), getattr(attention, "use_rope", None))
        sources.append(stored.get(kind, i) if getattr(attention, "is_kv_shared_layer", False) else i)
        if getattr(attention, "store_full_length_kv", False):
            stored[kind] = i
    return sources


def still_seen(columns: Tensor, left: Tensor, length: int) -> Tensor:
    """Of the positions of keys [B, P] or [B, G, P], with -1 in those that are not among the positions `left` [B, C] of
    later layers.

    Both are positions 0..length-1, or -1 at filler.
    """
    marks = torch.zeros(len(left), length + 1, dtype=torch.bool, device=left.device)
    marks = marks.scatter(1, left + 1, torch.ones_like(left, dtype=torch.bool))
    columns = columns.to(left.device)
    seen = marks.gather(1, columns.flatten(1) + 1).view_as(columns)
    return columns.masked_fill(~seen, -1)


def own_mask(config: Any, hidden: Tensor, valid: Tensor | None, sizes: Sizes, layer: int, window: Window | None) -> Any:
    """The mask that transformers makes for this layer over a sequence as it is, by the function of the layer's kind.

    Args:
        hidden: [B, R, D]. valid: [B, P] padding mask, None where everything is valid; refused where the attention
            kernel's mask is unknown.
    """
    make: Callable[..., Any] = create_causal_mask
    if window is not None:
        make = create_chunked_causal_mask if window.chunked else create_sliding_window_causal_mask
    if valid is not None:
        valid = valid.to(hidden.device)
        if config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
            raise VlmpruneError(
                f"attn_implementation={config._attn_implementation!r} has no mask that could hide the padding of rows "
                "of different lengths; load the model with attn_implementation='sdpa', or prune one sample at a time."
            )
    given: dict[str, Any] = {CACHE: sizes}
    return make(config=config, inputs_embeds=hidden, attention_mask=valid, layer_idx=layer, **given)


def check_window(config: Any, window: Window | None, length: int) -> None:
    """Refuse kernels that count a window in the shortened sequence by themselves, where it would reach too far back:
    where the unpruned sequence of `length` tokens, generated ones included, is longer than it."""
    implementation = config._attn_implementation
    if window is not None and length > window.size and implementation not in IN_MASK:
        raise VlmpruneError(
            f"The sequence of {length} tokens is longer than the attention window of {window.size}, which "
            f"attn_implementation={implementation!r} cannot count in original positions over a pruned prompt; load the "
            "model with attn_implementation='sdpa'."
        )


def check_hides(config: Any, layer: int, source: int) -> None:
    """Refuse kernels that cannot hide single keys of another layer's, which hold the dropped tokens too."""
    implementation = config._attn_implementation
    if implementation not in IN_MASK:
        raise VlmpruneError(
            f"Layer {layer} attends to the keys of layer {source}, which has all visual tokens, and "
            f"attn_implementation={implementation!r} cannot hide the dropped ones; load the model with "
            f"attn_implementation='sdpa', or prune at layer {source} or before."
        )


def scaling(attention: Any) -> int | None:
    """From which row on a layer scales its queries by their row, as Llama 4's without rotary embeddings do; None of one
    that never does."""
    if not getattr(attention, "attn_temperature_tuning", False) or getattr(attention, "use_rope", True):
        return None
    return int(attention.floor_scale)


def check_scale(attention: Any, length: int) -> None:
    """Refuse layers that scale queries by their row where the scale changes within a prompt of `length` unpruned
    tokens."""
    first = scaling(attention)
    if first is not None and length >= first:
        raise VlmpruneError(
            f"Layers without rotary embeddings scale the queries of a prompt of {length} tokens by their row from "
            f"{first} tokens on, which a pruned prompt changes; load the model with attn_temperature_tuning=False in "
            "its text config."
        )


def take_mask(mask: Any, rows: Tensor | None, columns: Tensor, hides: bool, group: int = 1) -> Any:
    """Rows and columns of a layer's mask; one of an unknown type is refused.

    Args:
        mask: made by the model over the unpruned sequence, not None.
        rows: [B, R] positions of the unpruned sequence; None = the mask's own rows.
        columns: [B, P] positions of the unpruned sequence, -1 for columns that nothing may see; [B, G, P] where key
            heads hold others.
        hides: whether there is any -1 among them (known to the host without asking the device).
        group: query heads of a key head.
    """
    if isinstance(mask, BlockMask) and columns.dim() == 2:
        return _take_block(mask, rows, columns)
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        by_head = " head by head" if columns.dim() == 3 else ""
        raise VlmpruneError(
            f"An attention mask of type {type(mask).__name__} cannot be pruned{by_head}; load the model with "
            "attn_implementation='sdpa'."
        )
    columns = columns.to(mask.device)
    if columns.dim() == 3:
        return _take_by_head(mask, columns.repeat_interleave(group, dim=1), hides)
    index = columns.clamp(min=0)
    if mask.dim() == 2:
        taken = torch.gather(mask.expand(len(columns), -1), 1, index)
        return taken.masked_fill(columns < 0, 0) if hides else taken
    mask = mask.expand(len(columns), *mask.shape[1:])
    if rows is not None:
        rows = rows.to(mask.device)
        mask = torch.gather(mask, 2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    out = torch.gather(mask, 3, index[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
    return _hidden(out, (columns < 0)[:, None, None]) if hides else out


def _hidden(mask: Tensor, places: Tensor) -> Tensor:
    """A 4-D mask that hides these places too."""
    return mask.masked_fill(places, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def by_head(real: Tensor, group: int, rows: int, config: Any) -> Tensor:
    """The mask [B, H, 1, P] of a single row that sees these entries [B, G, P]; `group`: query heads of a key head."""
    if config._attn_implementation != "sdpa" or rows != 1:
        raise VlmpruneError(
            f"attn_implementation={config._attn_implementation!r} has no mask in which heads see different numbers of "
            "entries; load the model with attn_implementation='sdpa', or use 'snapkv'."
        )
    return real.repeat_interleave(group, dim=1)[:, :, None]


def _take_by_head(mask: Tensor, columns: Tensor, hides: bool) -> Tensor:
    """The columns [B, H, P] of a mask, each head its own; where the mask has no heads, they must agree."""
    index = columns.clamp(min=0)
    if mask.dim() == 2:
        every = mask.expand(len(columns), -1)[:, None].expand(-1, columns.shape[1], -1).gather(2, index)
        every = every.masked_fill(columns < 0, 0)
        if bool((every != every[:, :1]).any()):
            raise VlmpruneError(
                "The attention_mask hides tokens of the prompt that some heads' caches hold and others do not, which "
                "FlashAttention's mask cannot say; load the model with attn_implementation='sdpa'."
            )
        return every[:, 0]
    rows = mask.shape[2]
    mask = mask.expand(len(columns), columns.shape[1], -1, -1)
    out = torch.gather(mask, 3, index[:, :, None].expand(-1, -1, rows, -1))
    return _hidden(out, (columns < 0)[:, :, None]) if hides else out


def _take_block(mask: BlockMask, rows: Tensor | None, columns: Tensor) -> BlockMask:
    """The same for a function of positions."""
    device = mask.kv_num_blocks.device
    columns = columns.to(device)
    rows = None if rows is None else rows.to(device)
    inner = mask.mask_mod

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        column = columns[batch, key]
        row = query if rows is None else rows[batch, query]
        return inner(batch, head, row, column.clamp(min=0)) & (column >= 0)

    queries = mask.shape[-2] if rows is None else rows.shape[1]
    make = ALL_MASK_ATTENTION_FUNCTIONS["flex_attention"]
    sizes = {"batch_size": len(columns), "q_length": queries, "kv_length": columns.shape[1]}
    return make(**sizes, mask_function=visible, device=device)


def block_rows(mask: BlockMask, rows: Tensor, keys: int) -> Tensor:
    """What a `BlockMask` lets query rows [B, R] see: bool [B, 1 or H, R, T]."""
    inner, rows = mask.mask_mod, rows.to(mask.kv_num_blocks.device)
    heads = mask.shape[1] if len(mask.shape) == 4 else 1

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return inner(batch, head, rows[batch, query], key)

    return create_mask(visible, len(rows), heads, rows.shape[1], keys, device=rows.device.type)
