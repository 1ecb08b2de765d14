"""Decoders whose rotary embedding has several axes (M-RoPE): a token has a place in time, height and width.

The sections say how many of the rotated pairs each axis has; shrunk to heads of 16 they keep their proportions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .common import SIZES, default_config


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [*sections], **more}}


def _glm(model_type: str) -> Callable[[], Any]:
    # Half of a head is rotated (THUDM/GLM-4.1V-9B-Thinking, config.json): 4 of 8 pairs here.
    return lambda: default_config(model_type, text_config=_rope(1, 1, 2, partial_rotary_factor=0.5))


def _glm4v_moe() -> Any:
    # As GLM-4.1V, its first layer dense and the others of experts, queries and keys with biases (zai-org/GLM-4.5V).
    return default_config("glm4v_moe", text_config={"head_dim": 128, **_rope(1, 1, 2, partial_rotary_factor=0.5)})


def _glm_ocr() -> Any:
    return default_config("glm_ocr", text_config={"head_dim": 128, **_rope(2, 3, 3)})


def _paddleocr_vl() -> Any:
    return default_config("paddleocr_vl", text_config=_rope(2, 3, 3))  # [16, 24, 24] of heads of 128


def _ernie() -> Any:
    # Text and images have experts of their own, of different widths; the first layer is dense, two experts are shared.
    rope = _rope(3, 3, 2, rope_theta=500000.0)  # height, width, time: [22, 22, 20] of heads of 128
    return default_config("ernie4_5_vl_moe", text_config={"head_dim": 128, **rope})


def _hunyuan_vl() -> Any:
    # Four axes: the place in the sequence, width, height, number of the image; NTK-scaled by `alpha`.
    rope = _rope(2, 2, 2, 2, rope_type="dynamic", alpha=1000.0, factor=1.0)
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 16, "hidden_size": 1024}
    return default_config("hunyuan_vl", text_config={**heads, **rope})


def _qwen2_5_omni() -> Any:
    config = default_config("qwen2_5_omni_thinker", text_config=_rope(2, 3, 3, rope_theta=1000000.0))
    config.vision_start_token_id, config.vision_end_token_id = 151652, 151653  # images are counted by the first
    config.audio_config = type(config.audio_config)(
        d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=48, output_dim=SIZES["hidden_size"]
    )
    return config


MAKERS: dict[str, Callable[[], Any]] = {
    "ernie4_5_vl_moe": _ernie,
    "glm46v": _glm("glm46v"),
    "glm4v": _glm("glm4v"),
    "glm4v_moe": _glm4v_moe,
    "glm_ocr": _glm_ocr,
    "glmga": _glm("glmga"),
    "hunyuan_vl": _hunyuan_vl,
    "paddleocr_vl": _paddleocr_vl,
    "qwen2_5_omni_thinker": _qwen2_5_omni,
}
FORMS: dict[str, str] = {}
