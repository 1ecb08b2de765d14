"""Models in the form that vLLM reads, and what an engine's answers are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from demos.tiny_vlm.scenes import make_scene
from vlmprune.serving.export import save_for_vllm

from .tiny_families import CLOSE, IMAGE, OPEN, VIDEO, VOCAB, build


def picture(number: int) -> Image.Image:
    """A scene of the bundled pair's world."""
    return make_scene(number).image()


def qwen_for_engine(model_type: str, folder: Path) -> Any:
    """A tiny Qwen in a folder as vLLM reads it, and loaded; its CPU kernels want heads of a multiple of 32 numbers."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    if model_type == "qwen3_vl":
        rope["mrope_interleaved"] = True  # transformers has no other way
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "rope_parameters": rope}
    model = build(model_type, text=heads)
    if model_type == "qwen2_5_vl":
        # Behind a video vLLM 0.32 goes on from its last time and transformers 5.23 from its larger side, which is the
        # same only where the times of a video end before.
        model.config.vision_config.tokens_per_second = 2
    model.config.vision_start_token_id, model.config.vision_end_token_id = OPEN, CLOSE
    save_for_vllm(model, folder)
    _qwen_processor(model_type, folder)
    return model


def _qwen_processor(model_type: str, folder: Path) -> None:
    """What vLLM asks of a Qwen's folder beside the weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoImageProcessor, PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen3VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    kinds: dict[str, tuple[Any, Any]] = {
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }
    processor, video_processor = kinds[model_type]

    special = {OPEN: "<|vision_start|>", CLOSE: "<|vision_end|>", IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>"}
    words = {special.get(number, f"w{number}"): number for number in range(VOCAB)}
    plain = Tokenizer(WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = WhitespaceSplit()
    # Not Qwen's own class, which makes a model of its own that knows none of these words.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="w0", eos_token="w2", pad_token="w0")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special.values())})
    sizes = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    pixels: dict[str, Any] = {"size": {"shortest_edge": 64, "longest_edge": 4096}}
    if model_type == "qwen3_vl":  # vLLM normalises videos as images, which the Hub's folders do alike
        pixels |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", **sizes, **pixels})
    )
    images = AutoImageProcessor.from_pretrained(folder)
    videos = video_processor(**sizes, **pixels)
    processor(images, tokenizer, videos, chat_template="").save_pretrained(folder)
