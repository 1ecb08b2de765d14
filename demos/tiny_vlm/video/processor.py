"""The clip pair's processor: the tokenizer of all words, 112 x 112 px frames, no torchvision needed."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from ..pair import CHAT_TEMPLATE, build_tokenizer
from ..vocabulary import CANVAS, GRID

SQUARE = {"height": CANVAS, "width": CANVAS}


def export_clip_processor(folder: Path) -> None:
    """The files of a LlavaOnevisionProcessor, as `vlmprune.inputs.processor.load_processor` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>", "<ans>"]})
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}",
        "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
        "{% if part['type'] == 'video' %}{{ '<video>' }}{% endif %}",
    )
    tokenizer.save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=[[CANVAS, CANVAS]]).save_pretrained(folder)
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "size": SQUARE, "do_sample_frames": False}
    video |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2))
    processor = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": GRID * GRID,
        "vision_feature_select_strategy": "default",
        "image_token": "<image>",
        "video_token": "<video>",
    }
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))
