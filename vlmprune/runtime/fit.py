"""Do a pruner and a model family fit, and which layers' attention does the pruner read?"""

import inspect
from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedModelError, VlmpruneError
from ..families import Family
from ..flow.locate import SampleLayout
from ..flow.returned import checked_layers
from ..methods.base import Pruner

# What a decoder layer may be given: what is cut to the kept rows, or belongs to no row.
_GIVEN = {
    "hidden_states",
    "position_embeddings",
    "position_ids",
    "attention_mask",
    *("past_key_values", "past_key_value", "cache", "use_cache", "cache_position"),
    *("output_attentions", "output_router_logits"),
    *("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"),
}


def check_backbone(text: Any) -> None:
    """Refuse a language model whose layers do more with a sequence than attend, whatever family it is in.

    A recurrence sees what is masked; what else a layer is given for each token is not gathered.
    """
    what = f"The language model {getattr(text.config, 'model_type', type(text).__name__)!r} cannot be pruned"
    remedy = "use a model whose layers all are plain attention"
    if not hasattr(text, "layers"):
        raise UnsupportedModelError(f"{what}, because a {type(text).__name__} has no layers; {remedy}.")
    for i, layer in enumerate(text.layers):
        layer = getattr(layer, "_orig_mod", layer)  # of a compiled one
        if not (hasattr(layer, "self_attn") or hasattr(layer, "cross_attn")):
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
        if "position_embeddings" not in named:
            raise UnsupportedModelError(
                f"{what}, because its layers take no position_embeddings, from which a kept token's position is read; "
                f"{remedy}."
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


def read_layers(pruner: Pruner, drops: Sequence[int], seeing: Sequence[int]) -> list[int]:
    """The layers whose attention the pruner reads: of those `seeing` the image, the last before each of its `drops`.

    Where it reads a layer ahead of its run, the first from the drop on.

    Raises:
        VlmpruneError: there is none before a drop, or none behind it.
    """
    if not (pruner.reads_attention or pruner.reads_keys):
        return []
    read = []
    for layer in drops:
        if pruner.reads_own_layer:
            behind = [i for i in seeing if i >= layer]
            if not behind:
                raise VlmpruneError(
                    f"layer={pruner.layer!r} leaves no cross-attention layer to read behind it; use layer={seeing[-1]} "
                    "or less."
                )
            read.append(behind[0])
            continue
        before = [i for i in seeing if i < layer]
        if not before:
            raise VlmpruneError(
                f"layer={pruner.layer!r} leaves no cross-attention layer to read before it; use layer={seeing[0] + 1} "
                "or more."
            )
        read.append(before[-1])
    return read
