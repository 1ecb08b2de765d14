"""Decoders with experts, and with what came along: latent attention, heads by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from .common import SIZES, VISION, default_config, shrunk


def _kimi_k25() -> Any:
    # Latent attention, the first layer dense (moonshotai/Kimi-K2.5: first_k_dense_replace 1, one group, 384 experts).
    return default_config("kimi_k25", text_config={"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1})


def _step3p7() -> Any:
    # One layer in four is full, the others slide over 512 tokens, with 96 heads instead of 64 and all of a head
    # rotated instead of half (stepfun-ai/Step-3.5-Flash, config.json). Layers 0 to 2 are dense.
    config = AutoConfig.for_model("step3p7")
    config.vision_config = shrunk(config.vision_config, VISION, 2)
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
    rope = {"rope_theta": [5000000.0, *[10000.0] * 3], "partial_rotary_factors": [0.5, 1.0, 1.0, 1.0]}
    sizes = {name: value for name, value in SIZES.items() if hasattr(config.text_config, name)}
    config.text_config = type(config.text_config)(**{
        **sizes, "num_hidden_layers": 4, "layer_types": kinds, "num_sliding_attention_heads": 6, "sliding_window": 8,
        "n_routed_experts": 4, "num_local_experts": 4, "share_expert_dim": 32, **rope,
    })  # fmt: skip
    return config


def _deepseek_ocr2() -> Any:
    # Full attention heads, 64 experts of which 6 are used and 2 shared, the first layer dense.
    kinds = ["dense", *["sparse"] * 11]
    text = {"num_hidden_layers": 12, "num_experts_per_tok": 6, "mlp_layer_types": kinds, "hidden_size": 1280,
            "num_attention_heads": 10, "topk_method": "greedy"}  # fmt: skip
    config = default_config("deepseek_ocr2", text_config=text)
    vision = config.vision_config
    vision.sam_config = type(vision.sam_config)(
        hidden_size=32, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16,
        window_size=2, global_attn_indexes=[1], downsample_channels=[16, 32],
    )  # fmt: skip
    vision.encoder_config = shrunk(vision.encoder_config, SIZES, 2)
    return config


MAKERS: dict[str, Callable[[], Any]] = {
    "deepseek_ocr2": _deepseek_ocr2,
    "kimi_k25": _kimi_k25,
    "step3p7": _step3p7,
}
FORMS: dict[str, str] = {}
