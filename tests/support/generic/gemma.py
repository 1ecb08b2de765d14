"""Gemma 3n and Gemma 4: layers that use the keys of an earlier layer, inputs of each layer's own, several streams.

Six layers, the last two with the keys of earlier ones; every third layer sees everything, the last one included, so
that both kinds share and one source is layer 2, the other layer 3. Published patterns, from transformers' config
classes, whose defaults are the named checkpoint's:

| type | checkpoint | full layers | shared | window | more |
|---|---|---|---|---|---|
| gemma3n | google/gemma-3n-E4B | every 5th of 35 | last 15 | 512 | 4 streams, inputs of 256 for each layer, the first \
10 MLPs 95 % sparse, 2 of 8 heads are keys', logits capped at 30 |
| gemma4 | google/gemma-4-e2b-it | every 6th, and the last | by checkpoint | 512 | heads of 256, in full layers of \
512, which rotate a quarter of them; inputs of 256 for each layer; MLPs of shared layers twice as wide where \
`use_double_wide_mlp`; the small ones have no bidirectional attention |
| gemma4, experts | google/gemma-4-26B-A4B-it | | none | | 2 key heads in full layers, values are keys; no inputs for \
each layer; image tokens see each other in sliding layers (`use_bidirectional_attention="vision"`) |
| gemma4_unified | google/gemma-4-12B-it | every 6th, and the last | none by default | 1024 | as the last, no experts, \
no tower |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from .common import SIZES, VISION, VOCAB

KINDS = ["sliding_attention", "sliding_attention", "full_attention"] * 2
SHARED = 2  # of the six layers
OWN_VOCAB = 144  # of Gemma 3n: ids from here on, the image's among them, have no input of a layer's own
_TEXT: dict[str, Any] = {
    **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")},
    **{name: SIZES[name] for name in ("num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window")},
    **{name: SIZES[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    "num_hidden_layers": len(KINDS), "layer_types": KINDS,
}  # fmt: skip
_OWN_INPUTS = {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8}


def gemma3n() -> Any:
    """A tower of transformers' own in the place of timm's, since features are handed over."""
    config = AutoConfig.for_model("gemma3n")
    sparse = [0.95, 0.0, 0.0, 0.0, 0.0, 0.0]
    config.text_config = type(config.text_config)(
        **_TEXT, **{**_OWN_INPUTS, "vocab_size_per_layer_input": OWN_VOCAB}, num_kv_shared_layers=SHARED,
        laurel_rank=8, activation_sparsity_pattern=sparse,
    )  # fmt: skip
    tower = AutoConfig.for_model("clip_vision_model", **VISION, image_size=12, patch_size=4)
    tower.vocab_size, tower.vocab_offset, tower.rms_norm_eps = VOCAB - OWN_VOCAB, OWN_VOCAB, 1e-6
    vars(config)["vision_config"] = tower  # past the check of its type
    config.audio_config = type(config.audio_config)(
        vocab_size=8, vocab_offset=VOCAB, hidden_size=32, conf_num_attention_heads=2, conf_num_hidden_layers=1
    )
    config.audio_token_id, config.vision_soft_tokens_per_image = VOCAB + 1, 9
    return config


def gemma4(**text: Any) -> Any:
    """Neither a tower of vision nor one of sound; `text` is what differs from E2B's language model."""
    options = {**_OWN_INPUTS, "num_kv_shared_layers": SHARED, "use_double_wide_mlp": True, **text}
    return _fourth("gemma4", {"final_logit_softcapping": 30.0, **options})


def gemma4_experts(**text: Any) -> Any:
    """As 26B-A4B, a mixture of experts."""
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    alike = {"attention_k_eq_v": True, "num_global_key_value_heads": 1, "use_bidirectional_attention": "vision"}
    return _fourth("gemma4", {**experts, **alike, "hidden_size_per_layer_input": 0, **text})


def gemma4_unified(**text: Any) -> Any:
    return _fourth("gemma4_unified", {"attention_k_eq_v": True, "num_global_key_value_heads": 1, **text})


def _fourth(model_type: str, text: dict[str, Any]) -> Any:
    kind: type[PretrainedConfig] = type(AutoConfig.for_model(model_type))
    config: Any = kind(text_config={**_TEXT, "global_head_dim": 32, **text}, vision_config=None, audio_config=None)
    config.audio_token_id = VOCAB + 1
    return config


MAKERS: dict[str, Callable[[], Any]] = {"gemma3n": gemma3n, "gemma4": gemma4, "gemma4_unified": gemma4_unified}
FORMS = {"gemma3n": "stack"}
