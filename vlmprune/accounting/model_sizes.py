"""From a config to a model's sizes: the model is built on the meta device, without any weights."""

import math
from typing import Any

import torch
from torch import nn

from ..errors import VlmpruneError
from ..families import family_of
from .flops import expert_share, linear_size, model_cost, output_head
from .roofline import ModelSize

_GEMMA4 = "vision_soft_tokens_per_image"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def build(config: Any, dtype: torch.dtype) -> Any:
    """The model of a config on the meta device; the config must be that of a supported vision-language model."""
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    except Exception as error:  # whatever a user's sizes make transformers raise is bad input
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise VlmpruneError(
            f"A {config.model_type!r} is not built as an image-text model ({reason}); give a vision-language model's "
            "config, and install what it needs."
        ) from None
    family_of(model)
    return model


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the weights that a pass reads: a table of embeddings is looked up, not read."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(p.numel() * p.element_size() for p in module.parameters() if id(p) not in tables)


def model_size(config: Any, *, dtype: str, visual: int | None, name: str, frames: int | None = None) -> ModelSize:
    """Sizes of a model for an image of `visual` tokens (None: what its config says), or for a video of `frames`."""
    model = build(config, DTYPES[dtype])
    family = family_of(model)
    text, tower = family.language_model(model), family.vision_tower(model)
    if not len(text.layers):
        raise VlmpruneError(f"The language model of {name!r} has no layers; check num_hidden_layers in its config.")
    own = max(1, tokens_per_image(config))
    if frames is None:
        patches = own * merged if (merged := _merged(config)) else _square(config) or own
        visual = visual or own
        patches = math.ceil(patches * visual / own)
    else:
        visual, patches = video_tokens(config, frames)
    head = output_head(model)
    head_bytes = 0 if head is None else sum(p.numel() * p.element_size() for p in head.parameters())
    number = next(text.parameters()).element_size()
    experts, share = expert_share(text)
    return ModelSize(
        name=name,
        cost=model_cost(family, model),
        text_bytes=weight_bytes(text) + head_bytes,
        expert_bytes=experts * number,
        expert_share=share,
        vision_bytes=0 if tower is None else weight_bytes(tower),
        all_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        number_bytes=number,
        vision_flops=0 if tower is None else 2 * linear_size(tower) * patches,
        visual=visual,
    )


def _merged(config: Any) -> int | None:
    """How many patches become one token, where the tower's config or the model's says it."""
    vision = getattr(config, "vision_config", None)
    names = ("spatial_merge_size", "pooling_kernel_size")
    stated = (getattr(one, name, None) for one in (vision, config) for name in names)
    side = next((size for size in stated if isinstance(size, int)), None)
    return side**2 if side else None


def _square(config: Any, side: int | None = None) -> int | None:
    """Patches of a square image, of `side` pixels or where the tower's config names its side."""
    vision = getattr(config, "vision_config", None)
    side, patch = side or getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    side, patch = (value[0] if isinstance(value, list | tuple) else value for value in (side, patch))
    return (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) and patch > 0 else None


USUAL_SIDE = 896  # pixels of an image whose tokens follow its size


def tokens_per_image(config: Any) -> int:
    """Visual tokens of an image of 896 x 896 pixels, of a tile where images are cut into tiles."""
    for name in ("image_seq_length", "image_seq_len", "mm_tokens_per_image", "num_image_tokens", _GEMMA4):
        if isinstance(tokens := getattr(config, name, None), int):
            return tokens
    if merged := _merged(config):
        return (_square(config, USUAL_SIDE) or 4096) // merged
    patches = _square(config) or 576
    vision = getattr(config, "vision_config", None)
    for one, name in ((config, "scale_factor"), (config, "downsample_ratio"), (vision, "pixel_shuffle_ratio")):
        if isinstance(factor := getattr(one, name, None), int | float):
            return int(patches * factor**2) if factor < 1 else patches // int(factor) ** 2
    return patches


# A token of these covers two frames, of the size below; the processors round its sides to whole tokens.
_IN_PAIRS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe")
FRAME = (420, 756)  # pixels
GEMMA4_FRAME = 70  # tokens; its images have 280


def video_tokens(config: Any, frames: int) -> tuple[int, int]:
    """Visual tokens of a video of so many frames, and patches that the tower sees.

    Raises:
        VlmpruneError: nothing is known about this model's videos.
    """
    kind, patches, merged = config.model_type, _square(config) or 0, _merged(config) or 1
    if kind in _IN_PAIRS:
        vision = config.vision_config
        side = vision.patch_size * math.isqrt(merged)
        tokens = math.ceil(frames / vision.temporal_patch_size) * math.prod(round(length / side) for length in FRAME)
        return tokens, tokens * merged
    if kind in ("gemma4", "gemma4_unified"):
        return frames * GEMMA4_FRAME, frames * GEMMA4_FRAME * merged
    side = math.isqrt(patches)
    a_frame = {
        "llava_onevision": math.ceil(side / 2) ** 2, "llava_next_video": (side // 2) ** 2,
        "smolvlm": tokens_per_image(config), "internvl": tokens_per_image(config),
    }  # fmt: skip
    if kind not in a_frame:
        raise VlmpruneError(
            f"How many tokens a {kind!r} makes of a video is not known here; give --visual instead of --frames."
        )
    return frames * a_frame[kind] + (kind == "llava_onevision"), frames * patches  # one newline behind the video
