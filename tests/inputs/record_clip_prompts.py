"""Prompts about a clip's file as transformers' own processors make them: the record that ours are compared with.

    python -m tests.inputs.record_video_processors prompts

wants a torchvision and num2words. Of every family a tiny processor is saved as the
Hub has it and loaded by AutoProcessor; the frames and their times come from a file written here.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.inputs.record_video_processors import clip, summary
from tests.support.saved_families import (
    _CROPS,
    _LLAVA,
    _PINS,
    _VISION,
    QWEN,
    QWEN_TEMPLATE,
    SAVED,
    SQUARE,
    Saved,
    save_processor,
    template,
)  # fmt: skip
from tests.support.tiny_families import CLOSE, IMAGE, OPEN, VIDEO

RECORD = Path(__file__).with_name("clip_prompts.json")
QUESTION = "How many are blue?"
_BOTH = {IMAGE: "<image>", VIDEO: "<video>"}
_GLM = {IMAGE: "<|image|>", VIDEO: "<|video|>", OPEN: "<|begin_of_image|>", CLOSE: "<|end_of_image|>",
        112: "<|begin_of_video|>", 113: "<|end_of_video|>"}  # fmt: skip
_SIZE = {"size": {"shortest_edge": 512, "longest_edge": 8192}}
_GRID = {key: value for key, value in QWEN.items() if not key.endswith("_pixels")} | _SIZE
_EDGE = {"size": {"shortest_edge": 12}, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}}

# Families with a processor alone here; those of `SAVED` that take videos have a tiny model too.
PROCESSORS = {
    "llava_next_video": Saved(
        "LlavaNextVideoProcessor", {"image_processor_type": "LlavaNextImageProcessor", **SQUARE, **_EDGE, **_PINS},
        _BOTH, template("<image>", "<video>"), extra={**_LLAVA, "image_token": "<image>", "video_token": "<video>"},
        video={"video_processor_type": "LlavaNextVideoVideoProcessor", **SQUARE, **_EDGE},
    ),
    "smolvlm": Saved(
        "SmolVLMProcessor", SAVED["smolvlm"].image, _CROPS, template("<image>", "<video>"),
        extra={"image_seq_len": 9}, video=SAVED["smolvlm"].video, needs="num2words",
    ),
    "glm4v": Saved(
        "Glm4vProcessor", {"image_processor_type": "Glm4vImageProcessor", **_GRID}, _GLM,
        template("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>"),
        video={"video_processor_type": "Glm4vVideoProcessor", **_GRID},
        named={"image_token": "<|image|>", "video_token": "<|video|>"},
    ),
    "perception_lm": Saved(
        "PerceptionLMProcessor",
        {"image_processor_type": "PerceptionLMImageProcessor", **SQUARE, "tile_size": 24, "max_num_tiles": 4,
         "vision_input_type": "vanilla", "size": {"height": 24, "width": 24}},
        {IMAGE: "<|image|>", VIDEO: "<|video|>"}, template("<|image|>", "<|video|>"),
        video={"video_processor_type": "PerceptionLMVideoProcessor", **SQUARE, "size": {"height": 24, "width": 24}},
        extra={"patch_size": 4, "pooling_ratio": 2}, named={"image_token": "<|image|>", "video_token": "<|video|>"},
    ),
    "qwen3_5": Saved(
        "Qwen3VLProcessor", {"image_processor_type": "Qwen2VLImageProcessorFast", **_GRID}, _VISION, QWEN_TEMPLATE,
        video={"video_processor_type": "Qwen3VLVideoProcessor", **_GRID},
    ),
}  # fmt: skip
FAMILIES = {
    **{name: saved for name, saved in SAVED.items() if saved.video and name not in PROCESSORS},
    **PROCESSORS,
}
QWEN3 = FAMILIES["qwen3_vl"]
# Its own default gives a tiny model 8,192 patches a frame.
FAMILIES["qwen3_vl"] = Saved(**{**vars(QWEN3), "video": {**(QWEN3.video or {}), **_SIZE}})


def clip_file(folder: Path) -> Path:
    """Nine frames, each shown for a quarter of a second."""
    first, *others = clip(9, 45, 80)
    path = folder / "clip.gif"
    first.save(path, save_all=True, append_images=others, duration=250)
    return path


def asked(path: Path, frames: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A conversation with so many evenly spaced frames of the file, and what is known of them; read by Pillow here."""
    with Image.open(path) as opened:
        total = opened.n_frames
        taken = [round(at * (total - 1) / (frames - 1)) for at in range(frames)] if frames > 1 else [total // 2]
        images = []
        for at in taken:
            opened.seek(at)
            images.append(opened.convert("RGB"))
    metadata = {"fps": 4.0, "total_num_frames": total, "frames_indices": taken, "duration": total / 4}
    content = [{"type": "video", "video": images}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}], [metadata]


def summarised(given: Any) -> dict[str, Any]:
    """Ids whole, everything else as in `record_video_processors`."""
    made = dict(given)
    return {"ids": made.pop("input_ids").tolist(), "rest": summary(made)}


def main() -> None:
    from transformers import AutoProcessor

    rows = {}
    with tempfile.TemporaryDirectory() as place:
        path = clip_file(Path(place))
        for name, saved in FAMILIES.items():
            processor = AutoProcessor.from_pretrained(save_processor(saved, Path(place) / name))
            rows[name] = {}
            for frames in (5, 2):
                talk, metadata = asked(path, frames)
                given = processor.apply_chat_template(
                    talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                    processor_kwargs={"do_sample_frames": False, "video_metadata": metadata},
                )  # fmt: skip
                rows[name][str(frames)] = summarised(given)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    RECORD.write_text(f"{{\n{lines}\n}}\n")
