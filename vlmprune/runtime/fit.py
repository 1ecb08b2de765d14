"""Do a pruner and a model family fit, and which layers' attention does the pruner read?"""

import inspect
from collections.abc import Collection, Sequence
from typing import Any

from torch import nn
from transformers.cache_utils import StaticLayer

from ..attention.editor import AttentionEditor
from ..attention.observer import AttentionObserver
from ..errors import UnsupportedModelError, VlmpruneError
from ..families import Family
from ..families.mechanisms import shares_selection
from ..flow.locate import SampleLayout
from ..flow.returned import checked_layers
from ..hf.cache_state import holds_keys
from ..hf.compatibility import CACHE_NAMES
from ..methods.base import Pruner
from ..methods.kv.base import CacheCut, CacheMethod, CacheReader

# What a decoder layer may be given: what is cut to the kept rows, or belongs to no row.
_GIVEN = {
    "hidden_states",
    "position_embeddings",
    "position_ids",
    "attention_mask",
    *("past_key_values", "past_key_value", "cache", "use_cache", "cache_position"),
    *("output_attentions", "output_router_logits"),
    *("moe_mm_token_type_ids", "per_layer_input", "shared_kv_states", "prev_topk_indices"),
    *("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"),
}


def check_backbone(text: Any, family: Family) -> None:
    """Refuse a language model whose layers do with a sequence what is not known here, whatever family it is in: what a
    layer is given for each token has to be pruned along, and one that does not attend has to be known as such."""
    what = f"The language model {getattr(text.config, 'model_type', type(text).__name__)!r} cannot be pruned"
    remedy = "use another language model"
    if not hasattr(text, "layers"):
        raise UnsupportedModelError(f"{what}, because a {type(text).__name__} has no layers; {remedy}.")
    places: dict[int, int] = {}  # where each module stands
    for i, layer in enumerate(text.layers):
        layer = getattr(layer, "_orig_mod", layer)  # of a compiled one
        first = min(places.setdefault(id(part), i) for part in (layer, family.attention(layer)) if part is not None)
        if first != i:
            raise UnsupportedModelError(
                f"{what}, because its layers {first} and {i} are one module, or their attention is; put a "
                "copy.deepcopy into one of the places."
            )
        if family.attention(layer) is None and not _attends_not(layer):
            raise UnsupportedModelError(
                f"{what}, because its layer {i}, a {type(layer).__name__}, has no self_attn; {remedy}."
            )
        parameters = inspect.signature(type(layer).forward).parameters.values()
        named = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD} - {"self"}
        if "hidden_states" not in named:  # a wrapper's, which says nothing
            continue
        if more := sorted(named - _GIVEN):
            raise UnsupportedModelError(
                f"{what}, because its layers are given {more[0]!r} too, which would have to be pruned along; {remedy}."
            )


def _attends_not(layer: nn.Module) -> bool:
    """Whether a layer is known not to attend: a recurrence begins with a short convolution, and what remembers nothing
    is given no cache."""
    if any(isinstance(part, nn.Conv1d) for part in layer.modules()):
        return True
    return not any(set(CACHE_NAMES) & set(inspect.signature(part.forward).parameters) for part in layer.children())


def check_positions(pruner: Pruner, text: Any) -> None:
    """Refuse new positions for kept tokens where a language model does not compute them from position ids alone."""
    rotary = getattr(text, "rotary_emb", None)
    plain = rotary is not None and "layer_type" not in inspect.signature(rotary.forward).parameters
    if pruner.positions == "compact" and not plain:
        raise VlmpruneError(
            f"positions='compact' is not supported for the language model {text.config.model_type!r}, which has no "
            "rotary embedding of position ids alone to compute new ones with; use positions='original'."
        )


def check_fit(pruner: Pruner, family: Family, stages: int) -> None:
    """Refuse a pruner that cannot work on a family; `stages`: at how many layers it drops tokens."""
    name = type(pruner).__name__
    if type(pruner).select is Pruner.select and type(pruner).score is Pruner.score:
        raise VlmpruneError(f"The method {name} has neither score() nor select(); define one of them.")
    if family.cross_attention and stages > 1:
        raise VlmpruneError(
            f"{name} drops tokens at several layers, which {family.model_type!r} with its cross-attention layers does "
            "not support; use a method of one layer, such as 'fastv'."
        )
    if pruner.reads_text and family.cross_attention:
        raise VlmpruneError(
            f"{name} compares visual tokens with the text beside them, which {family.model_type!r} keeps apart; use a "
            "method that does not, such as 'divprune' or 'fastv'."
        )
    if family.cross_attention and type(pruner).query_positions is not Pruner.query_positions:
        raise VlmpruneError(
            f"{name} reads the attention of rows that its query_positions() names, but in {family.model_type!r} only "
            "the last token's attention to the image is read; leave query_positions() out there."
        )
    if pruner.positions == "compact" and not family.plain_positions:
        raise VlmpruneError(
            f"positions='compact' is not supported for {family.model_type!r}, whose attention or position ids depend "
            "on where the visual tokens stood; use positions='original'."
        )


def check_cache(method: CacheMethod, family: Family, layers: Sequence[int], lent: Collection[int]) -> None:
    """Refuse a model without a cache to cut; `layers`: those with a cache of their own that grows without end. `lent`:
    layers whose keys others use."""
    if family.cross_attention:
        raise UnsupportedModelError(
            f"{method.title!r} acts on the cache of a sequence, but {family.model_type!r} keeps its image in "
            "cross-attention layers; use a pruner such as 'fastv'."
        )
    if not layers:
        raise UnsupportedModelError(
            f"{method.title!r} acts on caches that grow with the prompt, but every attention layer of this language "
            "model has a window; use a pruner such as 'divprune'."
        )
    if isinstance(method, CacheCut) and method.by_head and any(i in lent for i in layers):
        raise UnsupportedModelError(
            f"{method.title!r} stores heads in groups, but layers of this language model use the keys of layer "
            f"{min(lent)}, which have to be whole; use 'snapkv'."
        )


def check_grows(method: CacheMethod, cache: Any, layer: int) -> None:
    """Refuse a layer of a cache that has room for entries to come: they would be taken for the newest."""
    if holds_keys(cache, layer) and isinstance(cache.layers[layer], StaticLayer):
        raise VlmpruneError(
            f"{method.title!r} cannot read a part of a {type(cache.layers[layer]).__name__} of the cache; call "
            "generate without cache_implementation, so that it makes a DynamicCache."
        )


def check_selecting(
    method: CacheReader, observers: Sequence[AttentionObserver], readers: Sequence[int], depth: int
) -> None:
    """Refuse options that a model does not have, and what would read or edit attention to other keys than it knows."""
    method.selector(readers, depth)
    editor = next((one for one in observers if isinstance(one, AttentionEditor)), None)
    if editor is not None:
        raise VlmpruneError(
            f"{editor.name!r} edits attention to the whole cache, of which {method.title!r} reads a part; use one of "
            "them, or a method that cuts the cache, such as 'snapkv'."
        )


def check_lent(
    pruner: Pruner | None, observers: Sequence[AttentionObserver], sources: Sequence[int], drops: Sequence[int]
) -> None:
    """Refuse what does not go together where layers use the keys of an earlier one: `sources`, of every layer."""
    if pruner is None:
        return
    name, shared = type(pruner).__name__, [i for i, source in enumerate(sources) if source != i]
    if shared and pruner.positions == "compact":
        raise UnsupportedModelError(
            f"positions='compact' is not supported where layers use the keys of earlier ones, as layer {shared[0]} "
            "does; use positions='original'."
        )
    late = next((i for i in shared if any(sources[i] < drop <= i for drop in drops)), None)
    editor = next((one for one in observers if isinstance(one, AttentionEditor)), None)
    if late is not None and editor is not None and late in editor.eligible:
        raise UnsupportedModelError(
            f"{editor.name!r} cannot edit layer {late}, which attends to the keys of layer {sources[late]}, where "
            f"{name} has not dropped tokens yet; let it drop them before layer {min(sources[i] for i in shared)} or "
            "earlier."
        )


def drop_layers(
    pruner: Pruner, depth: int, layouts: list[SampleLayout] | None = None, wrapped: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The layers before which tokens are dropped: as a model of `depth` layers is wrapped, or of a prompt.

    `layouts`: of the prompt. `wrapped`: the layers at wrap time, if attention is read before them, which bind it.
    """
    name = type(pruner).__name__
    layers = checked_layers(pruner.stage_layers(depth, layouts), depth, name)
    if wrapped is not None and layers != wrapped:
        raise VlmpruneError(
            f"{name}.stage_layers() returned {wrapped} when the model was wrapped, before which attention is read, and "
            f"{layers} for a prompt; return the same layers, whatever the prompt."
        )
    return layers


def check_selection(pruner: Pruner, text: Any, layers: Sequence[int]) -> None:
    """Refuse to drop rows before a layer that attends to the keys which an earlier layer has selected, by index."""
    owners = [i for i, layer in enumerate(text.layers) if not shares_selection(layer)]
    for layer in layers:
        if layer not in owners:
            before = max(i for i in owners if i < layer)
            after = next((f" or {i}" for i in owners if i > layer), "")
            raise UnsupportedModelError(
                f"{type(pruner).__name__} drops tokens before layer {layer}, which attends to the keys that layer "
                f"{before} has selected by their place among all tokens; use layer={before}{after}."
            )


def read_layers(pruner: Pruner, family: Family, drops: Sequence[int], seeing: Sequence[int]) -> list[int]:
    """The layers whose attention the pruner reads: of those `seeing` the image, the last before each of its `drops`.

    Where it reads a layer ahead of its run, the one it drops before; in a family with cross attention the first from
    there on.

    Raises:
        VlmpruneError: there is none before a drop, none behind it, or it reads one that does not attend.
    """
    if not (pruner.reads_attention or pruner.reads_keys):
        return []
    name, kind = type(pruner).__name__, "cross-attention" if family.cross_attention else "attention"
    if not seeing:
        raise VlmpruneError(
            f"{name} reads attention, and no layer of this language model attends; use a method that does not, such as "
            "'divprune'."
        )
    return [_read_layer(pruner, kind, layer, seeing) for layer in drops]


def _read_layer(pruner: Pruner, kind: str, drop: int, seeing: Sequence[int]) -> int:
    """The layer that is read for the drop before layer `drop`."""
    name = type(pruner).__name__
    what = f"{name} drops tokens before layer {drop} (layer={pruner.layer!r}), which"
    if not pruner.reads_own_layer:
        before = [i for i in seeing if i < drop]
        if not before:
            raise VlmpruneError(f"{what} leaves no {kind} layer to read before it; use layer={seeing[0] + 1} or more.")
        return before[-1]
    behind = [i for i in seeing if i >= drop]
    if not behind:
        raise VlmpruneError(f"{what} leaves no {kind} layer to read behind it; use layer={seeing[-1]} or less.")
    if kind == "attention" and behind[0] != drop:
        raise VlmpruneError(
            f"{what} does not attend, and reads the attention of that layer; choose layer and stages so that it drops "
            f"before attention layers, which are {', '.join(map(str, seeing))}."
        )
    return behind[0]
