"""LLaVA-like models with random weights and prompts for them: what the benchmarks of speed run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
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
    sizes = {"intermediate_size": width * 11 // 4, "vocab_size": 1024, **text}
    heads = width // HEAD
    language = LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, **sizes
    )
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1
    )
    return LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()


def random_prompt(visual: int, text: int, *, before: int = 1, vocabulary: int = 1000) -> dict[str, Tensor]:
    """BOS, further words up to `before` tokens, the image's tokens, and a question that makes it `text` tokens."""

    def words(count: int) -> Tensor:
        return torch.randint(10, vocabulary, (count,))

    ids = torch.cat([torch.tensor([1]), words(before - 1), torch.full((visual,), IMAGE_TOKEN), words(text - before)])
    return {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def encoded(features: Iterable[Tensor]) -> dict[str, Any]:
    """Images as the vision stage would hand them over, a tensor each, so that only the language model runs."""
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(features))}}
