"""How an image gets into a model, and what its layers do with the sequence, where that is more than vlmprune can prune.

Found by the arguments of forwards and by attributes of modules, whatever the type's name.
"""

import inspect
from typing import Any

# Arguments of a model's forward by which an image gets in otherwise than as rows in place of image tokens.
_OTHERWISE = {
    "protein_input_ids": "attends to a protein, not an image, in cross-attention layers",
    "image_embeds_position_mask": "marks the image's rows by a mask instead of token ids",
    "image_attention_mask": "attends to the image in cross-attention layers between its decoder layers",
    "cross_attention_mask": "attends to the image in cross-attention layers",
    "actions": "predicts a robot's actions from the image, not text",
    "self_conditioning_logits": (
        "generates by diffusion: a decoder refines a block of tokens several times over what an encoder has read"
    ),
    "encoder_outputs": "is an encoder-decoder, whose image goes into the encoder and is read in cross-attention layers",
}
_IMAGES = ("pixel_values", "pixel_values_images", "image_patches", "mm_encoder_outputs")
# Kinds of decoder layers, by the config's `layer_types`, whose attention depends on more than which keys are left.
_KINDS = {
    "reference_sliding_attention": "keep the prompt's keys for ever and let only generated ones slide",
    "compressed_sparse_attention": "attend to keys compressed from several tokens",
    "heavily_compressed_attention": "attend to keys compressed from several tokens",
}


def takes(module: Any) -> set[str]:
    """The names of the arguments of a module's forward."""
    return set() if module is None else set(inspect.signature(module.forward).parameters)


def missing_mechanism(model: Any, marked: bool) -> str | None:
    """What a model with a head does with an image that vlmprune has no mechanism for, as the end of a sentence about
    it; None where its image may stand as rows in its decoder's sequence. `marked`: its config has an image token."""
    base, config = model.base_model, model.config
    given = takes(model) | takes(base)
    why = next((why for name, why in _OTHERWISE.items() if name in given), None)
    if why is not None:
        return why
    if any(getattr(one, "is_encoder_decoder", False) for one in (config, getattr(config, "text_config", None))):
        return _OTHERWISE["encoder_outputs"]
    if not given & set(_IMAGES):
        return "takes no image"
    if hasattr(base, "get_image_features"):
        return None
    if hasattr(base, "get_video_features"):
        return "takes videos, not images"
    if "encoder_hidden_states" in takes(model.get_decoder()):
        return "attends to the image in cross-attention layers"
    return None if marked else "puts the image in front of the text by itself, without image tokens in the prompt"


def inner_generator(model: Any) -> Any:
    """The language model whose `generate` a model's own `generate` calls, so that its own forward never runs (BLIP-2);
    None where it runs."""
    plain = inspect.unwrap(type(model).generate)
    own, names = "generate" in vars(type(model)), plain.__code__.co_names
    inner = getattr(model, "language_model", None)
    return inner if own and "generate" in names and "super" not in names and hasattr(inner, "generate") else None


def sequence_mechanism(text: Any) -> str | None:
    """What a decoder's layers do with the sequence that dropping rows would change; None where they do not."""
    kinds = getattr(text.config, "layer_types", None) or ()
    kind = next((kind for kind in kinds if kind in _KINDS), None)
    if kind is not None:
        return f"has layers of kind {kind!r}, which {_KINDS[kind]}"
    for layer in text.layers:
        attention = getattr(layer, "self_attn", None)
        if "conv_mask" in takes(attention):
            return "has convolutions over neighbouring tokens inside its attention layers"
        if getattr(layer, "ple", None) is not None:
            return "embeds groups of neighbouring tokens again inside its layers"
        pooled = getattr(getattr(attention, "indexer", None), "index_kpool", 1)
        if pooled > 1:
            return f"selects keys by groups of {pooled} neighbouring tokens, from which dropped ones would be missing"
    return None


def shares_selection(layer: Any) -> bool:
    """Whether a decoder layer attends to the keys that an earlier layer has selected (indexed attention)."""
    return bool(getattr(getattr(layer, "self_attn", None), "skip_topk", False))


def counts_keys(layer: Any) -> bool:
    """Whether a decoder layer takes `position_ids` for places among its keys, of which its indexer selects blocks."""
    return bool(getattr(getattr(getattr(layer, "self_attn", None), "indexer", None), "block_size", None))
