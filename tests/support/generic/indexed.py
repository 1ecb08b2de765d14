"""Indexed attention: an indexer selects the keys that a query attends to, and later layers may share its selection.

The tiny budgets are smaller than the prompts, so that the selection matters. What a query selects among are the keys
that are left: the same as those of the unpruned sequence that are not hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from .common import LAYERS, SIZES, default_config

INDEX = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 8}


def mistral_large4() -> Any:
    """mistralai/Mistral-Large-4: every layer selects by itself in the default config; here layer 3 shares 2's keys.

    Latent attention with as many key heads as queries, rotary embedding (YaRN) in three of four layers.
    """
    config = AutoConfig.for_model("mistral_large4")
    whole = default_config("mistral_large4")
    given = {name: value for name, value in whole.text_config.to_dict().items() if name in SIZES}
    given |= INDEX | {"num_hidden_layers": LAYERS, "qk_rope_head_dim": 16, "index_topk_pattern": "FFFS"}
    given |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    whole.text_config = type(config.text_config)(**given)
    return whole


def dots3_note() -> Any:
    """Layers 0, 1 and every fourth after 1 select keys; the others slide over 512 positions with heads of their own.

    (`Dots3NoteTextConfig`: `i < 2 or i % 4 == 1`, `swa_*`; experts from layer 1 on.)
    """
    config = AutoConfig.for_model("dots3_note")
    sizes = {name: value for name, value in SIZES.items() if hasattr(type(config.text_config), name)}
    sizes |= INDEX | {"num_hidden_layers": LAYERS, "num_key_value_heads": 4, "head_dim": 32, "n_routed_experts": 4}
    sizes |= {
        "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2, "swa_q_lora_rank": 24, "swa_kv_lora_rank": 24,
        "swa_head_dim": 32, "swa_qk_nope_head_dim": 16, "swa_v_head_dim": 16, "shared_experts_intermediate_size": 32,
    }  # fmt: skip
    config.text_config = type(config.text_config)(**sizes)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = type(config.vision_config), {"mlp_layer_types": ["dense"], "adapter_in_dim": 32}
    sound = type(config.audio_config), {"adapter_input_size": 32, "downsample_hidden_size": 16}
    config.vision_config, config.audio_config = (
        kind(**vision, **more, adapter_out_dim=64) for kind, more in (tower, sound)
    )
    return config


def hy_v4_vl() -> Any:
    """tencent/Hy4: layer 0 and every fourth from 1 on select keys, the three behind share them; four streams."""
    config = default_config("hy_v4_vl")
    sizes = {name: value for name, value in SIZES.items() if hasattr(type(config.text_config), name)}
    sizes |= INDEX | {"num_hidden_layers": LAYERS, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2],
    }}  # fmt: skip
    config.text_config = type(config.text_config)(**sizes)
    return config


def minimax_m3_vl(block: int = 128) -> Any:
    """MiniMaxAI/MiniMax-M3: blocks of 128 keys, of which a query sees 16, in all layers but the first.

    (`sparse_attention_config` of its config.json, which the config class turns into `layer_types`; the class's own
    default has no such layer.) An indexer's head selects for a group of queries.
    """
    config = default_config("minimax_m3_vl")
    given = config.text_config.to_dict()
    given |= {"index_n_heads": 2, "index_head_dim": 16, "index_block_size": block}
    given |= {"layer_types": ["full_attention"] + ["minimax_m3_sparse"] * (LAYERS - 1)}
    config.text_config = type(config.text_config)(**given)
    return config


MAKERS: dict[str, Callable[[], Any]] = {
    "dots3_note": dots3_note,
    "hy_v4_vl": hy_v4_vl,
    "minimax_m3_vl": minimax_m3_vl,
    "mistral_large4": mistral_large4,
}
