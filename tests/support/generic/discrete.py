"""Decoders whose images are discrete ids of a codebook, embedded like words: rows of the sequence all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig

from .common import IMAGE, SIZES, VOCAB, default_config, shrunk

CODES = 4  # of a codebook; Chameleon has 8192, Emu 3 32768, Apertus 1.5 131072
FIRST_CODE = VOCAB - 2 * CODES


def _chameleon() -> Any:
    # No language model apart from the base model. Digits of a code are letters in the names of tokens.
    names = {f"IMGIMG{chr(ord('A') + code)}Z": FIRST_CODE + code for code in range(CODES)}
    config = AutoConfig.for_model("chameleon", vocabulary_map={"<image>": IMAGE, **names})
    config = shrunk(config, SIZES, 4)
    config.vq_config = type(config.vq_config)(
        embed_dim=16, num_embeddings=CODES, latent_channels=16, resolution=16, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1,
    )  # fmt: skip
    return config


def _emu3() -> Any:
    names = {f"<|visual token {code:06}|>": FIRST_CODE + code for code in range(CODES)}
    config = default_config("emu3", vocabulary_map={"<image>": IMAGE, "<|extra_200|>": IMAGE - 1, **names})
    config.vq_config = type(config.vq_config)(
        codebook_size=CODES, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, attn_resolutions=[1],
        hidden_size=32,
    )  # fmt: skip
    return config


def _apertus1p5() -> Any:
    # Rotary frequencies are scaled as Llama 3's are.
    config = AutoConfig.for_model("apertus1p5")
    config.text_config = shrunk(config.text_config, SIZES, 4)
    config.vision_config = type(config.vision_config)(
        codebook_size=CODES, embed_dim=16, latent_channels=16, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1,
    )  # fmt: skip
    audio = config.audio_config
    config.audio_config = type(audio)(**{
        **{name: value for name, value in audio.to_dict().items() if name != "model_type"}, "codebook_size": CODES,
        "hidden_size": 32, "codebook_dim": 32, "num_filters": 4,
    })  # fmt: skip
    config.image_token_offset, config.audio_token_offset = FIRST_CODE, FIRST_CODE + CODES
    config.audio_token_id = IMAGE - 1
    return config


MAKERS: dict[str, Callable[[], Any]] = {"apertus1p5": _apertus1p5, "chameleon": _chameleon, "emu3": _emu3}
FORMS: dict[str, str] = {"chameleon": "stack"}
