"""Plain decoders: attention of one kind in every layer, or windows by the config's pattern."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from .common import SIZES, default_config, hand_over


def _molmo2() -> Any:
    config = default_config("molmo2")
    config.adapter_config.vision_feature_layer = [1, 0]
    config.adapter_config.text_hidden_size = SIZES["hidden_size"]
    return config


def _perception_lm() -> Any:
    config = default_config("perception_lm")
    config.vision_config.model_args = {"embed_dim": config.vision_config.hidden_size}  # of the timm tower left out
    return config


def _got(model_type: str) -> Callable[[], Any]:
    def made() -> Any:
        config = default_config(model_type)
        config.vision_config.output_channels = 16
        return config

    return made


def _ovis2() -> Any:
    config = default_config("ovis2")
    config.hidden_size, config.vocab_size = SIZES["hidden_size"], SIZES["vocab_size"]
    return config


def _with_indicators(model: PreTrainedModel) -> None:
    """Five rows more: what stands around an image."""
    hand_over(model, "stack")
    ready = model.base_model.get_image_features

    @functools.wraps(ready)
    def features(pixel_values: Any, **options: Any) -> Any:
        out = ready(pixel_values, **options)
        out.visual_indicator_features = torch.randn(5, SIZES["hidden_size"], generator=torch.Generator().manual_seed(9))
        return out

    model.base_model.get_image_features = features


MAKERS: dict[str, Callable[[], Any]] = {
    "got_ocr2": _got("got_ocr2"),
    "molmo2": _molmo2,
    "ovis2": _ovis2,
    "perception_lm": _perception_lm,
    "pp_chart2table": _got("pp_chart2table"),
}
_FLAT = (
    "aria", "aya_vision", "cohere2_vision", "deepseek_vl", "deepseek_vl_hybrid", "fast_vlm", "janus", "shieldgemma2",
    "vipllava",
)  # fmt: skip
FORMS = {
    **dict.fromkeys((*_FLAT, "qianfan_ocr"), "flat"),
    **dict.fromkeys(("got_ocr2", "perception_lm", "pp_chart2table", "video_llava"), "stack"),
}
HANDED: dict[str, Callable[[PreTrainedModel], None]] = {"ovis2": _with_indicators}
