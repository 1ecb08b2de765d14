"""DeepStack: features of several layers of the tower, added to the visual rows at several decoder layers.

Qwen3-VL and those built like it are handed one list of features an image for each of the first decoder layers
(`deepstack_visual_indexes` of their vision config has three) and add them to these layers' output. Granite 4 Vision
zeroes the visual rows at the input and adds its features before the layers that `deepstack_layer_map` and
`spatial_target_layers` name: 0, 3, 6, 9, 12, 15, 18, 21 of 40 in ibm-granite/granite-4.0-3b-vision's config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    CohereCompassTextConfig,
    Granite4VisionConfig,
    Granite4VisionTextConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..tiny_families import PAD
from .common import TOKENS, VISION, VOCAB, default_config, shrunk

LEVELS = 3
# The published ones (12, 4, 0.263 and 1 / head_dim = 1/64) leave what pruning moves in random weights at 0.01.
GRANITE = {
    "embedding_multiplier": 2.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.9,
    "attention_multiplier": 0.25,
}


def cohere_compass() -> Any:
    """CohereLabs/North-Micro-Vision-Instruct: rotary embedding of three axes in sliding layers, none in full ones.

    The config class takes both by kind of layer (`rope_parameters`), and three of four layers slide
    (`sliding_window_pattern`).
    """
    config = default_config("cohere_compass")
    rotary = {"rope_type": "default", "rope_theta": 50000.0, "mrope_section": [4, 2, 2]}
    config.text_config = CohereCompassTextConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, layer_types=["sliding_attention"] * 3 + ["full_attention"],
        rope_parameters={"sliding_attention": rotary, "full_attention": None}, max_position_embeddings=512,
        pad_token_id=PAD, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip
    return config


def granite_docling() -> Any:
    """Multipliers other than the published ones, at which pruning moves logits."""
    config = default_config("granite_docling")
    for name, value in GRANITE.items():
        setattr(config.text_config, name, value)
    return config


def granite4_vision() -> Granite4VisionConfig:
    """Layers 0 and 2 from several layers of the tower, 3 and 5 from places of the last."""
    text = Granite4VisionTextConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=PAD, bos_token_id=1, eos_token_id=None, **GRANITE,
    )  # fmt: skip
    vision = shrunk(AutoConfig.for_model("siglip_vision_model"), {**VISION, "hidden_size": 64}, 2)
    return Granite4VisionConfig(
        text_config=text, vision_config=vision, downsample_rate="4/8", deepstack_layer_map=[[-2, 2], [-1, 0]],
        spatial_target_layers=[3, 5], qformer_config={"model_type": "blip_2_qformer", "num_hidden_layers": 1},
    )  # fmt: skip


def qwen3_omni_moe_thinker() -> Any:
    """The checkpoint's config has ids for the start and the end of an image, which the class has no default for."""
    config = default_config("qwen3_omni_moe_thinker")
    config.vision_start_token_id, config.vision_end_token_id = VOCAB - 5, VOCAB - 4
    return config


def _levels(pixel_values: Tensor, width: int, count: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(TOKENS, width, generator=generator) for _ in pixel_values] for _ in range(count)]


def hand_over_levels(model: PreTrainedModel) -> None:
    """An image's features, and those of each level, as lists of [n, D]."""
    width = model.config.get_text_config().hidden_size

    def features(pixel_values: Tensor, *args: Any, **options: Any) -> BaseModelOutputWithPooling:
        first, *deeper = _levels(pixel_values, width, 1 + LEVELS)
        out = BaseModelOutputWithPooling(pooler_output=first)
        out.deepstack_features = deeper
        out.router_logits = None  # granite_docling's, which ask whether a page is dense
        return out

    model.base_model.get_image_features = features


def hand_over_layers(model: PreTrainedModel) -> None:
    """Pairs of a decoder layer and each image's features [n, D] to be added before it."""
    width, config = model.config.text_config.hidden_size, model.config
    layers = [layer for _, layer in config.deepstack_layer_map] + config.spatial_target_layers

    def features(pixel_values: Tensor, *args: Any, **options: Any) -> BaseModelOutputWithPooling:
        out = BaseModelOutputWithPooling()
        out.deepstack_features = list(zip(layers, _levels(pixel_values, width, len(layers)), strict=True))
        return out

    model.base_model.get_image_features = features


MAKERS: dict[str, Callable[[], Any]] = {
    "cohere_compass": cohere_compass,
    "granite4_vision": granite4_vision,
    "granite_docling": granite_docling,
    "qwen3_omni_moe_thinker": qwen3_omni_moe_thinker,
}
HANDED: dict[str, Callable[[PreTrainedModel], None]] = {
    **dict.fromkeys(
        ("cohere_compass", "cosmos3_omni", "granite_docling", "qwen3_omni_moe_thinker", "qwen3_vl_moe"),
        hand_over_levels,
    ),
    "granite4_vision": hand_over_layers,
}
