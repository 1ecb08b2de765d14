"""Recurrent hybrids: linear attention, state spaces or short convolutions between attention layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from .common import SIZES, VISION, hand_over, shrunk

# Qwen3.5 (Qwen/Qwen3.5-27B, Qwen3_5TextConfig): three layers of Gated DeltaNet, then one of attention; a convolution
# over 4 tokens, twice as many value heads as key heads, a quarter of the head rotated. MiniCPM-V 4.6, 4.7 and OCR have
# this text model too.
_QWEN = {
    "layer_types": [*["linear_attention"] * 3, "full_attention", *["linear_attention"] * 3, "full_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    **{"head_dim": 32, "num_hidden_layers": 8},
}  # fmt: skip
# LFM2 (LiquidAI/LFM2-1.2B, the text model of LFM2-VL-1.6B, config.json): 16 layers, of which 2, 5, 8, 10, 12 and 14
# attend and the others are convolutions over 3 tokens.
_LFM2 = {"layer_types": ["conv", "conv", "full_attention"] * 2, "num_hidden_layers": 6}
# LFM3 (LiquidAI/LFM3-1.7B, Lfm3Config): convolutions over 7 tokens; full and sliding attention take turns in between,
# each with rotary embeddings of its own.
_LFM3 = {
    "layer_types": ["conv", "conv", "full_attention", "conv", "sliding_attention", "conv", "full_attention", "conv"],
    "num_hidden_layers": 8,
}  # fmt: skip
# Nemotron-H (nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16, config.json): hybrid_override_pattern "MEMEM*EMEMEM*...",
# Mamba 2 and experts in turn, attention without rotary embeddings now and then; a layer has one of them and nothing
# beside it. The last is an MLP, as in Nemotron-H without experts.
_NEMOTRON = {
    "layers_block_type": [
        *("linear_attention", "moe", "linear_attention", "moe", "linear_attention", "full_attention", "moe"),
        *("linear_attention", "full_attention", "mlp"),
    ],
    **{"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 16},
    **{"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32},
}  # fmt: skip


def _maker(model_type: str, facts: dict[str, Any]) -> Callable[[], Any]:
    """The type's default config, its text as large as `facts` say and else shrunk."""

    def make() -> Any:
        config = AutoConfig.for_model(model_type)
        for name, part in list(vars(config).items()):
            if name == "text_config":
                setattr(config, name, shrunk(part, SIZES | facts))
            elif hasattr(part, "to_dict"):
                setattr(config, name, shrunk(part, VISION, 2))
        return config

    return make


_QWEN_TEXTS = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
MAKERS: dict[str, Callable[[], Any]] = {
    **{name: _maker(name, _QWEN) for name in _QWEN_TEXTS},
    "lfm2_vl": _maker("lfm2_vl", _LFM2),
    "lfm3_vl": _maker("lfm3_vl", _LFM3),
    "nemotron_h_omni": _maker("nemotron_h_omni", _NEMOTRON),
}
FORMS: dict[str, str] = {}


def _remembering(model: PreTrainedModel) -> None:
    """Features handed over; and states that last for some ten tokens, as trained ones do. By default a random one is
    gone with the next token, and what is left of it is noise that the norm behind it blows up."""
    hand_over(model, "list")
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.constant_(parameter, -2.0)


HANDED: dict[str, Callable[[PreTrainedModel], None]] = dict.fromkeys((*_QWEN_TEXTS, "nemotron_h_omni"), _remembering)
