"""Tiny models with their processors in a folder, as a download leaves them: published configs, a vocabulary made here.

`save("qwen2_5_vl", folder)` writes config and weights of the tiny build, a byte-level BPE tokenizer whose special
tokens have the ids of the tiny build, a chat template in the family's words, and the JSON files of its processor with
the fields and the nesting of the Hub's; only sizes are tiny.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from . import tiny_families
from .tiny_families import BOS, CLOSE, COLUMN, IMAGE, LINE, OPEN, PAD, VIDEO, WHOLE

VOCABULARY = 400
CORPUS = ["What colour is the star? Is there a red circle to the left of the small tile? How many are blue?"] * 4
MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "rescale_factor": 1 / 255}
QWEN = {
    "min_pixels": 64, "max_pixels": 1024, "patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "do_resize": True,
    "do_normalize": True, "do_convert_rgb": True, "resample": 3, **MEAN,
}  # fmt: skip
SQUARE = {"do_resize": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3, **MEAN}
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c.type == 'video' %}<|vision_start|><|video_pad|>"
    "<|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Nothing stands behind an image: vLLM 0.32 does not find one before a line break, which joins those of the image's end.
GEMMA_TEMPLATE = (
    "{% for m in messages %}<start_of_turn>{{ m.role | replace('assistant', 'model') }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def template(image: str, video: str = "") -> str:
    """A chat template that writes `image` for an image."""
    return (
        "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}{% if c.type == 'image' %}" + image + "\n"
        "{% elif c.type == 'video' %}" + video + "\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


@dataclass(frozen=True)
class Saved:
    """A family's files. `tokens`: special tokens by id. `named`: those that the tokenizer's config names.

    `nested`: whether everything stands in processor_config.json, as transformers 5 saves it.
    """

    processor: str
    image: dict[str, Any]
    tokens: dict[int, str]
    template: str
    video: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    needs: str | None = None


_VISION = {OPEN: "<|vision_start|>", CLOSE: "<|vision_end|>", IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>",
           112: "<|im_start|>", 113: "<|im_end|>"}  # fmt: skip
_TAGS = {IMAGE: "<image>"}
_CROPS = {
    IMAGE: "<image>", OPEN: "<fake_token_around_image>", COLUMN[0]: "<row_1_col_1>", COLUMN[1]: "<row_1_col_2>",
    WHOLE: "<global-img>", LINE: "\n\n", 116: "<end_of_utterance>",
}  # fmt: skip
_CLIP = {**SQUARE, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}, "size": {"shortest_edge": 12}}
_LLAVA = {"patch_size": 4, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
_PINS = {"image_grid_pinpoints": [[12, 24], [24, 12]]}
_ONE = {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False, "do_pad": True,
        "max_image_size": {"longest_edge": 12}, "size": {"longest_edge": 12}}  # fmt: skip

SAVED = {
    "llava": Saved(
        "LlavaProcessor", {"image_processor_type": "CLIPImageProcessor", **_CLIP}, _TAGS, template("<image>"),
        extra={**_LLAVA, "image_token": "<image>"},
    ),
    "llava_next": Saved(
        "LlavaNextProcessor", {"image_processor_type": "LlavaNextImageProcessor", **_CLIP, **_PINS}, _TAGS,
        template("<image>"), extra={**_LLAVA, "image_token": "<image>"},
    ),
    "llava_onevision": Saved(
        "LlavaOnevisionProcessor",
        {"image_processor_type": "LlavaOnevisionImageProcessor", **SQUARE, "do_pad": True,
         "size": {"height": 12, "width": 12}, **_PINS},
        {**_TAGS, VIDEO: "<video>"}, template("<image>", "<video>"),
        video={"video_processor_type": "LlavaOnevisionVideoProcessor", **SQUARE, "size": {"height": 12, "width": 12}},
        extra={"num_image_tokens": 9, "vision_feature_select_strategy": "full", "image_token": "<image>",
               "video_token": "<video>", "vision_aspect_ratio": "anyres_max_9"},
    ),
    **{
        kind: Saved(
            name, {"image_processor_type": images, **QWEN}, _VISION, QWEN_TEMPLATE,
            video={"video_processor_type": videos, **QWEN},
        )
        for kind, name, images, videos in (
            ("qwen2_vl", "Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
            ("qwen2_5_vl", "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
            ("qwen3_vl", "Qwen3VLProcessor", "Qwen2VLImageProcessorFast", "Qwen3VLVideoProcessor"),
        )
    },
    "idefics3": Saved(
        "Idefics3Processor", {**SQUARE, **_ONE}, _CROPS, template("<image>"), extra={"image_seq_len": 9}
    ),
    "smolvlm": Saved(
        "SmolVLMProcessor", {**SQUARE, **_ONE, "image_processor_type": "SmolVLMImageProcessor",
                             "max_image_size": {"longest_edge": 18}, "size": {"longest_edge": 18}}, _CROPS,
        template("<image>"), extra={"image_seq_len": 9}, needs="num2words",
        video={"video_processor_type": "SmolVLMVideoProcessor", **SQUARE, "fps": 1, "num_frames": 64,
               "size": {"longest_edge": 18}},
    ),
    "internvl": Saved(
        "InternVLProcessor",
        {"image_processor_type": "GotOcr2ImageProcessor", **SQUARE, "size": {"height": 12, "width": 12},
         "crop_to_patches": False, "min_patches": 1, "max_patches": 4},
        {IMAGE: "<IMG_CONTEXT>", OPEN: "<img>", CLOSE: "</img>", VIDEO: "<video>"},
        template("<IMG_CONTEXT>", "<video>"),
        video={"video_processor_type": "InternVLVideoProcessor", **SQUARE, "size": {"height": 12, "width": 12}},
        extra={"image_seq_length": 9},
        named={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
               "video_token": "<video>"},
    ),
    "gemma3": Saved(
        "Gemma3Processor", {"image_processor_type": "Gemma3ImageProcessor", **SQUARE,
                            "size": {"height": 12, "width": 12}},
        # Gemma's tokenizer has tokens of one to many line breaks, of which vLLM looks up four by name.
        {IMAGE: "<image_soft_token>", OPEN: "<start_of_image>", CLOSE: "<end_of_image>",
         112: "\n", 113: "\n\n", 114: "\n\n\n", 115: "\n\n\n\n", 116: "<start_of_turn>", 117: "<end_of_turn>"},
        GEMMA_TEMPLATE,
        extra={"image_seq_length": 9},
        named={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "paligemma": Saved(
        "PaliGemmaProcessor", {"image_processor_type": "SiglipImageProcessor", **SQUARE, "image_seq_length": 9,
                               "size": {"height": 12, "width": 12}},
        {**_TAGS, BOS: "<bos>"},
        "{{ bos_token }}{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
        "{{ c.text }}{% endif %}{% endfor %}{% endfor %}\n", named={"image_token": "<image>"},
    ),
    "mllama": Saved(
        "MllamaProcessor",
        {"image_processor_type": "MllamaImageProcessor", **SQUARE, "do_pad": True, "max_image_tiles": 4,
         "size": {"height": 12, "width": 12}},
        {tiny_families.VOCAB: "<|image|>", 112: "<|python_tag|>"}, template("<|image|>"),
    ),
}  # fmt: skip


def tokenizer(saved: Saved) -> PreTrainedTokenizerFast:
    """Byte-level BPE, with the family's special tokens at the ids of its tiny build."""
    special = [f"<unused{i}>" for i in range(tiny_families.VOCAB + 1)]
    for at, token in {PAD: "<pad>", BOS: "<s>", 2: "</s>", **saved.tokens}.items():
        special[at] = token
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token=special[BOS], eos_token="</s>",
        extra_special_tokens=saved.named or list(saved.tokens.values()),
    )  # fmt: skip


def save(family: str, folder: Path, *, nested: bool = False, text: dict[str, Any] | None = None) -> Path:
    """Write the family's folder.

    Args:
        text: what its text config has otherwise.
        nested: everything in processor_config.json, as transformers 5 saves it; else a file for each part, as most
            folders on the Hub have it.
    """
    model = tiny_families.build(family, text={"vocab_size": VOCABULARY, **(text or {})})
    model.generation_config.max_length = None
    model.save_pretrained(folder)
    return save_processor(SAVED[family], folder, nested=nested)


def save_processor(saved: Saved, folder: Path, *, nested: bool = False) -> Path:
    """Write the files of a processor alone."""
    tokenizer(saved).save_pretrained(folder)
    write(folder, "chat_template.json", {"chat_template": saved.template})
    whole = {"processor_class": saved.processor, **saved.extra}
    if nested:
        parts = {"image_processor": saved.image, **({"video_processor": saved.video} if saved.video else {})}
        write(folder, "processor_config.json", {**whole, **parts})
        return folder
    write(folder, "processor_config.json", whole)
    write(folder, "preprocessor_config.json", {**saved.image, "processor_class": saved.processor})
    if saved.video:
        write(folder, "video_preprocessor_config.json", {**saved.video, "processor_class": saved.processor})
    return folder


def write(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(value, indent=2))


def logits(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits
