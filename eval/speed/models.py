"""Models with random weights, most of them LLaVA-like, and prompts for them: what the benchmarks of speed run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE_TOKEN = 3
HEAD = 64  # width of an attention head
# As small as can be, where only the language model is timed.
NO_TOWER = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def random_llava(
    width: int,
    layers: int,
    *,
    side: int,
    patch: int = 4,
    tower: dict[str, int] = NO_TOWER,
    attention: str = "sdpa",
    **text: Any,
) -> LlavaForConditionalGeneration:
    """A model of that width and depth for images of side x side visual tokens.

    Args:
        text: settings of the language model beside its size; the vocabulary is 1,024 unless given.
    """
    vision = CLIPVisionConfig(**tower, image_size=side * patch, patch_size=patch)
    heads = width // HEAD
    sizes = {"intermediate_size": width * 11 // 4, "vocab_size": 1024, "num_key_value_heads": heads, **text}
    language = LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, **sizes)
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()


def random_generic(model_type: str, width: int, layers: int, *, attention: str = "sdpa") -> Any:
    """A model of a type without an adapter of its own, its language model of that width and depth, its tower tiny."""
    config = AutoConfig.for_model(model_type)
    heads = width // HEAD
    sizes = {
        "hidden_size": width, "intermediate_size": width * 11 // 4, "num_hidden_layers": layers, "vocab_size": 1024,
        "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": HEAD, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    text = config.get_text_config()
    pattern = text.to_dict() | sizes | {"layer_types": (getattr(text, "layer_types", None) or [])[:layers] or None}
    config.text_config = type(text)(**{name: value for name, value in pattern.items() if name != "model_type"})
    for name, size in NO_TOWER.items():
        setattr(config.vision_config, name, size)
    config.image_token_id = config.image_token_index = IMAGE_TOKEN
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attention).eval()


def random_prompt(visual: int, text: int, *, before: int = 1, vocabulary: int = 1000) -> dict[str, Tensor]:
    """BOS, further words up to `before` tokens, the image's tokens, and a question that makes it `text` tokens."""

    def words(count: int) -> Tensor:
        return torch.randint(10, vocabulary, (count,))

    ids = torch.cat([torch.tensor([1]), words(before - 1), torch.full((visual,), IMAGE_TOKEN), words(text - before)])
    return {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def encoded(features: Iterable[Tensor]) -> dict[str, Any]:
    """Images as the vision stage would hand them over, a tensor each, so that only the language model runs."""
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))}}
