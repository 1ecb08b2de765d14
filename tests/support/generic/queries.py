"""Q-Formers in front of a language model whose `generate` their own calls: the language model gets embeddings alone.

Salesforce/blip2-opt-2.7b and InstructBLIP: OPT (learned positions, no rotary embedding), as many image tokens as the
Q-Former has queries, an image token that processors add to checkpoints' configs. The tower and the Q-Former run here,
since `generate` of these types calls them by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from .common import SIZES, TOKENS, VISION, shrunk

TOWER = {**VISION, "image_size": 8, "patch_size": 4, "hidden_size": 32, "encoder_hidden_size": 32}


def blip(model_type: str) -> Any:
    """Nine queries an image."""
    config = AutoConfig.for_model(model_type, num_query_tokens=TOKENS, image_token_index=0)
    config.text_config = shrunk(config.text_config, SIZES, 4)
    config.vision_config = shrunk(config.vision_config, TOWER, 2)
    config.qformer_config = shrunk(config.qformer_config, {**TOWER, "vocab_size": 160}, 2)
    return config


def seen(model: PreTrainedModel) -> None:
    """Random queries, which are zero in a new model, and pixels that differ by image."""
    with torch.no_grad():
        model.query_tokens.normal_(generator=torch.Generator().manual_seed(0))


MAKERS: dict[str, Callable[[], Any]] = {
    "blip-2": lambda: blip("blip-2"),
    "instructblip": lambda: blip("instructblip"),
}
HANDED: dict[str, Callable[[PreTrainedModel], None]] = dict.fromkeys(MAKERS, seen)
