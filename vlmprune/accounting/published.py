"""Published vision-language models by name, as far as a plan needs them: the sizes of their language model and tower.

Numbers are those of the checkpoints' own config.json, or of what a source names. A model built from them has as many
weights as the checkpoint (`tests/accounting/test_published.py`); where no copy of a config.json could be read again,
that count is the evidence, and the source says so.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]  # a config.json's
CONFIG = "config.json"
UNREAD = "config.json not read again"
CONVERTER = "transformers' {}"
# Words behind a model's name that change none of its sizes.
_SUFFIXES = {"instruct", "it", "hf", "chat", "ov"}


@dataclass(frozen=True)
class PublishedModel:
    """One checkpoint: its short `name`, its id on the Hugging Face Hub, its sizes, and where these are from."""

    name: str
    hub: str
    config: Values
    source: str = CONFIG


def _text(width: int, inner: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, **more,
    }  # fmt: skip


def _vision(width: int, inner: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        **more,
    }  # fmt: skip


def _qwen2_5(width: int, *sizes: int, tower: int = 3420, vocab: int = 152_064, tied: bool = False) -> Values:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2}
    return {
        "model_type": "qwen2_5_vl", "tie_word_embeddings": tied,
        "vision_config": {**vision, "intermediate_size": tower, "out_hidden_size": width},
        "text_config": _text(width, *sizes, vocab_size=vocab, tie_word_embeddings=tied, rope_parameters=rope),
    }  # fmt: skip


_LARGE_TOWER = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
_SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_QWEN3_TOWER = {"num_heads": 16, "patch_size": 16, "spatial_merge_size": 2, "num_position_embeddings": 2304}


def _qwen3(tower: Values, width: int, *sizes: int, tied: bool = False, **experts: Any) -> Values:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    more: dict[str, Any] = {
        "head_dim": 128,
        "vocab_size": 151_936,
        "tie_word_embeddings": tied,
        "rope_parameters": rope,
        **experts,
    }
    return {
        "model_type": "qwen3_vl_moe" if experts else "qwen3_vl", "tie_word_embeddings": tied,
        "vision_config": {**tower, **_QWEN3_TOWER, "out_hidden_size": width},
        "text_config": _text(width, *sizes, **more),
    }  # fmt: skip


def _qwen3_5(width: int, inner: int, layers: int, heads: int, kv_heads: int, values: int, **experts: int) -> Values:
    """Three layers of four are Gated DeltaNet with so many value heads; `inner` 0: every MLP has experts."""
    more: dict[str, Any] = {
        "head_dim": 256, "vocab_size": 248_320, "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
        "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": values,
        "linear_value_head_dim": 128, **experts,
    }  # fmt: skip
    return {
        "model_type": "qwen3_5_moe" if experts else "qwen3_5", "tie_word_embeddings": False,
        "vision_config": {**_LARGE_TOWER, **_QWEN3_TOWER, "deepstack_visual_indexes": [], "out_hidden_size": width},
        "text_config": _text(width, inner, layers, heads, kv_heads, **more),
    }  # fmt: skip


def _llava(*sizes: int) -> Values:
    """Vicuna behind CLIP ViT-L/14 at 336 pixels."""
    clip = _vision(1024, 4096, 24, 16, model_type="clip_vision_model", image_size=336, patch_size=14)
    text = _text(*sizes, model_type="llama", vocab_size=32_064)
    return {"model_type": "llava", "image_seq_length": 576, "vision_config": clip, "text_config": text}


def _siglip(size: int, layers: int = 27) -> dict[str, Any]:
    kind = {"model_type": "siglip_vision_model", "vision_use_head": False}
    return _vision(1152, 4304, layers, 16, image_size=size, patch_size=14, **kind)


def _onevision(*sizes: int, vocab: int, tied: bool) -> Values:
    text = _text(*sizes, model_type="qwen2", vocab_size=vocab, tie_word_embeddings=tied)
    return {
        "model_type": "llava_onevision", "tie_word_embeddings": tied,
        "vision_config": _siglip(384, layers=26), "text_config": text,
    }  # fmt: skip


def _internvl(*sizes: int) -> Values:
    tower = _vision(1024, 4096, 24, 16, image_size=[448, 448], patch_size=[14, 14], attention_bias=True)
    text = _text(*sizes, model_type="qwen2", vocab_size=151_674, tie_word_embeddings=False)
    return {
        "model_type": "internvl", "image_seq_length": 256, "downsample_ratio": 0.5, "tie_word_embeddings": False,
        "vision_config": tower, "text_config": text,
    }  # fmt: skip


def _gemma3(*sizes: int, head_dim: int) -> Values:
    """Five layers of six see 1,024 positions back."""
    text = _text(*sizes, model_type="gemma3_text", head_dim=head_dim, sliding_window=1024, vocab_size=262_208)
    return {
        "model_type": "gemma3", "mm_tokens_per_image": 256,
        "vision_config": _siglip(896), "text_config": text,
    }  # fmt: skip


def _gemma4(tower: Values, *sizes: int, audio: bool = False, before_full: int = 5, **more: Any) -> Values:
    rope = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    period = ["sliding_attention"] * before_full + ["full_attention"]
    kinds = period * (sizes[2] // len(period))
    text = _text(*sizes, layer_types=kinds, rope_parameters=rope, final_logit_softcapping=30.0, **more)
    return {
        "model_type": "gemma4", "vision_soft_tokens_per_image": 280, "audio_config": {} if audio else None,
        "vision_config": tower, "text_config": text,
    }  # fmt: skip


_GEMMA4_SMALL = _vision(
    768, 3072, 16, 12, num_key_value_heads=12, head_dim=64, global_head_dim=64, pooling_kernel_size=3,
    default_output_length=280, use_clipped_linears=True,
)  # fmt: skip
_GEMMA4_LARGE = _vision(
    1152, 4304, 27, 16, num_key_value_heads=16, head_dim=72, global_head_dim=72, pooling_kernel_size=3,
    default_output_length=280, use_clipped_linears=False, standardize=True,
)  # fmt: skip
_GEMMA4_KEYS: dict[str, Any] = {
    "attention_k_eq_v": True, "use_bidirectional_attention": "vision", "sliding_window": 1024,
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
}  # fmt: skip


def _smolvlm(scale: int, tower: Values, *sizes: int) -> Values:
    text = _text(*sizes, model_type="llama", vocab_size=49_280, tie_word_embeddings=False)
    return {
        "model_type": "smolvlm", "scale_factor": scale, "tie_word_embeddings": False,
        "vision_config": tower, "text_config": text,
    }  # fmt: skip


_SMOLVLM_BASE = _vision(768, 3072, 12, 12, image_size=512, patch_size=16)
_LLAMA4_TOWER = _vision(
    1408, 5632, 34, 16, image_size=336, patch_size=14, pixel_shuffle_ratio=0.5, projector_input_dim=4096,
    projector_output_dim=4096, vision_output_dim=4096,
)  # fmt: skip
_LLAMA4 = {
    "model_type": "llama4", "tie_word_embeddings": False, "vision_config": _LLAMA4_TOWER,
    "text_config": _text(
        5120, 8192, 48, 40, 8, head_dim=128, intermediate_size_mlp=16_384, num_local_experts=16, num_experts_per_tok=1,
        interleave_moe_layer_step=1, attention_chunk_size=8192, vocab_size=202_048, tie_word_embeddings=False,
    ),
}  # fmt: skip
_MISTRAL3 = {
    "model_type": "mistral3", "spatial_merge_size": 2, "tie_word_embeddings": False,
    "vision_config": _vision(1024, 4096, 24, 16, model_type="pixtral", head_dim=64, image_size=1540, patch_size=14),
    "text_config": _text(
        5120, 32_768, 40, 32, 8, model_type="mistral", head_dim=128, vocab_size=131_072, sliding_window=None,
        tie_word_embeddings=False,
    ),
}  # fmt: skip

_GEMMA3_SCRIPT = CONVERTER.format("gemma3/convert_gemma3_weights.py")
_GEMMA4_SCRIPT = CONVERTER.format("gemma4/convert_gemma4_weights.py")
_ONEVISION_SCRIPT = CONVERTER.format("llava_onevision/convert_llava_onevision_weights_to_hf.py")
_EXPERTS: dict[str, Any] = {"num_experts": 128, "num_experts_per_tok": 8}
_QWEN3_5_EXPERTS = {
    "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
}  # fmt: skip

MODELS = (
    PublishedModel(
        "qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", _qwen2_5(2048, 11_008, 36, 16, 2, vocab=151_936, tied=True)
    ),
    PublishedModel("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", _qwen2_5(3584, 18_944, 28, 28, 4)),
    PublishedModel("qwen2.5-vl-32b", "Qwen/Qwen2.5-VL-32B-Instruct", _qwen2_5(5120, 27_648, 64, 40, 8, tower=3456)),
    PublishedModel(
        "qwen2.5-vl-72b", "Qwen/Qwen2.5-VL-72B-Instruct", _qwen2_5(8192, 29_568, 80, 64, 8, tower=3456),
        "Qwen2.5-VL technical report, arXiv 2502.13923, table 1",
    ),
    PublishedModel(
        "qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct", _qwen3(_SMALL_TOWER, 2048, 6144, 28, 16, 8, tied=True),
        "a copy of its config.json; loaded it has 2,127,532,032 weights",
    ),
    PublishedModel("qwen3-vl-4b", "Qwen/Qwen3-VL-4B-Instruct", _qwen3(_SMALL_TOWER, 2560, 9728, 36, 32, 8, tied=True)),
    PublishedModel("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", _qwen3(_LARGE_TOWER, 4096, 12_288, 36, 32, 8)),
    PublishedModel("qwen3-vl-32b", "Qwen/Qwen3-VL-32B-Instruct", _qwen3(_LARGE_TOWER, 5120, 25_600, 64, 64, 8)),
    PublishedModel(
        "qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct",
        _qwen3(_LARGE_TOWER, 2048, 6144, 48, 32, 4, **_EXPERTS, moe_intermediate_size=768),
    ),
    PublishedModel(
        "qwen3-vl-235b-a22b", "Qwen/Qwen3-VL-235B-A22B-Instruct",
        _qwen3(_LARGE_TOWER, 4096, 12_288, 94, 64, 4, **_EXPERTS, moe_intermediate_size=1536),
    ),
    PublishedModel("qwen3.5-9b", "Qwen/Qwen3.5-9B", _qwen3_5(4096, 12_288, 32, 16, 4, 32)),
    PublishedModel("qwen3.5-27b", "Qwen/Qwen3.5-27B", _qwen3_5(5120, 17_408, 64, 24, 4, 48)),
    PublishedModel(
        "qwen3.5-35b-a3b", "Qwen/Qwen3.5-35B-A3B", _qwen3_5(2048, 0, 40, 16, 2, 32, **_QWEN3_5_EXPERTS),
        "transformers, defaults of Qwen3_5MoeConfig",
    ),
    PublishedModel(
        "llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", _llava(4096, 11_008, 32, 32, 32),
        "config.json as transformers logs it, with LlamaConfig's defaults for its text model",
    ),
    PublishedModel("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", _llava(5120, 13_824, 40, 40, 40), UNREAD),
    PublishedModel(
        "llava-onevision-0.5b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        _onevision(896, 4864, 24, 14, 2, vocab=152_000, tied=True), _ONEVISION_SCRIPT,
    ),
    PublishedModel(
        "llava-onevision-7b", "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        _onevision(3584, 18_944, 28, 28, 4, vocab=152_128, tied=False), _ONEVISION_SCRIPT,
    ),
    PublishedModel(
        "internvl3-1b", "OpenGVLab/InternVL3-1B-hf", _internvl(896, 4864, 24, 14, 2),
        f"{UNREAD}; 938,193,024 weights, as InternVL2.5-1B has",
    ),
    PublishedModel(
        "internvl3-2b", "OpenGVLab/InternVL3-2B-hf", _internvl(1536, 8960, 28, 12, 2),
        f"{UNREAD}; 2,088,957,440 weights, as the header of its safetensors says",
    ),
    PublishedModel("internvl3-8b", "OpenGVLab/InternVL3-8B-hf", _internvl(3584, 18_944, 28, 28, 4), UNREAD),
    PublishedModel(
        "gemma-3-4b", "google/gemma-3-4b-it", _gemma3(2560, 10_240, 34, 8, 4, head_dim=256), _GEMMA3_SCRIPT
    ),
    PublishedModel(
        "gemma-3-12b", "google/gemma-3-12b-it", _gemma3(3840, 15_360, 48, 16, 8, head_dim=256), _GEMMA3_SCRIPT
    ),
    PublishedModel(
        "gemma-3-27b", "google/gemma-3-27b-it", _gemma3(5376, 21_504, 62, 32, 16, head_dim=128), _GEMMA3_SCRIPT
    ),
    PublishedModel(
        "gemma-4-e2b", "google/gemma-4-E2B-it",
        _gemma4(
            _GEMMA4_SMALL, 1536, 6144, 35, 8, 1, audio=True, before_full=4, attention_k_eq_v=False,
            hidden_size_per_layer_input=256, num_kv_shared_layers=20, use_double_wide_mlp=True,
        ),
        _GEMMA4_SCRIPT,
    ),
    PublishedModel(
        "gemma-4-e4b", "google/gemma-4-E4B-it",
        _gemma4(
            _GEMMA4_SMALL, 2560, 10_240, 42, 8, 2, audio=True, attention_k_eq_v=False, hidden_size_per_layer_input=256,
            num_kv_shared_layers=18, global_head_dim=512,
        ),
        _GEMMA4_SCRIPT,
    ),
    PublishedModel(
        "gemma-4-26b-a4b", "google/gemma-4-26B-A4B-it",
        _gemma4(
            _GEMMA4_LARGE, 2816, 2112, 30, 16, 8, **_GEMMA4_KEYS, num_global_key_value_heads=2, enable_moe_block=True,
            num_experts=128, top_k_experts=8, moe_intermediate_size=704,
        ),
        _GEMMA4_SCRIPT,
    ),
    PublishedModel(
        "gemma-4-31b", "google/gemma-4-31B-it",
        _gemma4(_GEMMA4_LARGE, 5376, 21_504, 60, 32, 16, **_GEMMA4_KEYS, num_global_key_value_heads=4), _GEMMA4_SCRIPT,
    ),
    PublishedModel(
        "smolvlm2-256m", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", _smolvlm(4, _SMOLVLM_BASE, 576, 1536, 30, 9, 3),
        f"{UNREAD}; 256,484,928 weights, as SmolDocling-256M has",
    ),
    PublishedModel(
        "smolvlm2-500m", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", _smolvlm(4, _SMOLVLM_BASE, 960, 2560, 32, 15, 5)
    ),
    PublishedModel(
        "smolvlm2-2.2b", "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        _smolvlm(3, _vision(1152, 4304, 27, 16, image_size=384, patch_size=14), 2048, 8192, 24, 32, 32),
        f"{UNREAD}; 2,246,784,880 weights, as public code expects of it",
    ),
    PublishedModel("llama-4-scout", "meta-llama/Llama-4-Scout-17B-16E-Instruct", _LLAMA4),
    PublishedModel("mistral-small-3.1-24b", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", _MISTRAL3),
)  # fmt: skip


# Billions of weights; of those a token goes through, where experts are chosen; visual tokens of an image, as in
# `model_sizes.tokens_per_image`. A plan counts them anew, and tests compare.
COUNTS: dict[str, tuple[float, float | None, int]] = {
    "qwen2.5-vl-3b": (3.75, None, 1024), "qwen2.5-vl-7b": (8.29, None, 1024), "qwen2.5-vl-32b": (33.5, None, 1024),
    "qwen2.5-vl-72b": (73.4, None, 1024), "qwen3-vl-2b": (2.13, None, 784), "qwen3-vl-4b": (4.44, None, 784),
    "qwen3-vl-8b": (8.77, None, 784), "qwen3-vl-32b": (33.4, None, 784), "qwen3-vl-30b-a3b": (31.1, 3.36, 784),
    "qwen3-vl-235b-a22b": (236, 22.2, 784), "qwen3.5-9b": (9.41, None, 784), "qwen3.5-27b": (27.4, None, 784),
    "qwen3.5-35b-a3b": (35.1, 3.46, 784), "llava-1.5-7b": (7.06, None, 576), "llava-1.5-13b": (13.4, None, 576),
    "llava-onevision-0.5b": (0.894, None, 729), "llava-onevision-7b": (8.03, None, 729),
    "internvl3-1b": (0.938, None, 256), "internvl3-2b": (2.09, None, 256), "internvl3-8b": (7.94, None, 256),
    "gemma-3-4b": (4.3, None, 256), "gemma-3-12b": (12.2, None, 256), "gemma-3-27b": (27.4, None, 256),
    "gemma-4-e2b": (5.1, None, 280), "gemma-4-e4b": (7.94, None, 280), "gemma-4-26b-a4b": (25.8, 3.83, 280),
    "gemma-4-31b": (31.3, None, 280), "smolvlm2-256m": (0.256, None, 64), "smolvlm2-500m": (0.507, None, 64),
    "smolvlm2-2.2b": (2.25, None, 81), "llama-4-scout": (109, 17.2, 144), "mistral-small-3.1-24b": (24, None, 1024),
}  # fmt: skip


def find(text: str) -> PublishedModel | None:
    """The published model that a name or a Hub id means; case, dots and dashes do not matter, nor does `-Instruct`.

    An id of another organisation is another model, whatever its name.
    """
    wanted = _key(text)
    for model in MODELS:
        if "/" in text and text.partition("/")[0].lower() != model.hub.partition("/")[0].lower():
            continue
        if wanted in (_key(model.name), _key(model.hub)):
            return model
    return None


def near(text: str, most: int = 3) -> list[str]:
    """Names of the published models that come nearest to a text, none where nothing is near."""
    keys = {_key(key): model.name for model in MODELS for key in (model.hub, model.name)}
    found = difflib.get_close_matches(_key(text), keys, n=2 * most, cutoff=0.6)
    return list(dict.fromkeys(keys[key] for key in found))[:most]


def _key(text: str) -> str:
    words = re.split(r"[^a-z0-9]+", text.lower().rpartition("/")[2])
    return "".join(word for word in words if word not in _SUFFIXES)
