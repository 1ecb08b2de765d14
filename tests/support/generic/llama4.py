"""Llama 4: the base model is the model itself, chunked attention with layers without rotary embedding in between.

Facts of Llama-4-Scout (transformers' Llama4TextConfig has its values as defaults): attention in chunks of 8192
positions and rotary embedding in three of four layers, neither in each fourth (`no_rope_layer_interval`), whose
queries are scaled by their position from `floor_scale` on; experts in every layer, one of 16 chosen a token beside a
shared one; queries and keys normalised. The features of a tile are the tower's `last_hidden_state`, which the model
itself projects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Llama4Config, Llama4TextConfig, Llama4VisionConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, MoeCausalLMOutputWithPast

from ..tiny_families import PAD
from .common import TOKENS, VOCAB

WIDTH = 32  # of what the tower returns


def llama4() -> Llama4Config:
    """Chunks of 8 positions; the scale of layers without rotary embedding changes during the steps, at 30."""
    text = Llama4TextConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, intermediate_size_mlp=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=512, num_local_experts=4,
        attention_chunk_size=8, floor_scale=30, pad_token_id=PAD, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    vision = Llama4VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=28,
        vision_output_dim=WIDTH, projector_input_dim=32, projector_output_dim=32,
    )  # fmt: skip
    return Llama4Config(text_config=text, vision_config=vision)


def hand_over_tiles(model: PreTrainedModel) -> None:
    """Features of tiles before the projector; and what transformers 5.24 forgot.

    Its Llama4ForConditionalGeneration reads `image_outputs` of the language model's output, which has no such field.
    """
    MoeCausalLMOutputWithPast.image_outputs = None  # type: ignore[attr-defined]

    def features(pixel_values: Tensor, **options: Any) -> BaseModelOutputWithPooling:
        rows = torch.randn(len(pixel_values), TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
        return BaseModelOutputWithPooling(last_hidden_state=rows)

    model.base_model.get_image_features = features


MAKERS: dict[str, Callable[[], Any]] = {"llama4": llama4}
HANDED: dict[str, Callable[[PreTrainedModel], None]] = {"llama4": hand_over_tiles}
