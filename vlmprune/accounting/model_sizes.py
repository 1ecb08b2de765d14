"""From a config folder or file to a model's sizes: the model is built on the meta device, without any weights."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import VlmpruneError
from ..families import family_of
from .flops import linear_size, model_cost
from .roofline import ModelSize

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def read_config(path: Path) -> Any:
    """A transformers config from a folder with a config.json, or from that file."""
    from transformers import CONFIG_MAPPING

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise VlmpruneError(f"There is no config at {str(file)!r}; give a model's folder or its config.json.")
    try:
        values = json.loads(file.read_text())
        kind = values.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise VlmpruneError(f"{str(file)!r} is not a JSON object ({error}); give a model's config.json.") from None
    if kind not in CONFIG_MAPPING:
        raise VlmpruneError(f"{str(file)!r} has the unknown model_type {kind!r}; give another model's config.")
    try:
        return CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # whatever a user's file makes transformers raise is bad input
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise VlmpruneError(f"{str(file)!r} is not a valid config of a {kind!r} ({reason}); check the file.") from None


def build(config: Any, dtype: torch.dtype) -> Any:
    """The model of a config on the meta device; the config must be that of a supported vision-language model."""
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise VlmpruneError(
            f"A {config.model_type!r} is not an image-text model ({reason}); give a vision-language model's config."
        ) from None
    family_of(model)
    return model


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the weights that a pass reads: a table of embeddings is looked up, not read."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(p.numel() * p.element_size() for p in module.parameters() if id(p) not in tables)


def model_size(config: Any, *, dtype: str, visual: int | None, name: str) -> ModelSize:
    """Sizes of a model for an image of `visual` tokens (None: what its config says)."""
    model = build(config, DTYPES[dtype])
    family = family_of(model)
    text, tower = family.language_model(model), family.vision_tower(model)
    own = tokens_per_image(config)
    visual = visual or own
    merge = getattr(config.vision_config, "spatial_merge_size", None)
    patches = own * merge**2 if merge else _square(config.vision_config) or own
    head = model.get_output_embeddings().weight
    return ModelSize(
        name=name,
        cost=model_cost(family, model),
        text_bytes=weight_bytes(text) + head.numel() * head.element_size(),
        vision_bytes=weight_bytes(tower),
        all_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        vision_flops=2 * linear_size(tower) * math.ceil(patches * visual / own),
        visual=visual,
    )


def _square(vision: Any) -> int | None:
    """Patches of a square image, where the tower's config names its side."""
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    side, patch = (value[0] if isinstance(value, list | tuple) else value for value in (side, patch))
    return (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) else None


def tokens_per_image(config: Any) -> int:
    """Visual tokens of an image of the usual size (a tile, where images are cut into tiles)."""
    for name in ("image_seq_length", "image_seq_len", "mm_tokens_per_image", "num_image_tokens"):
        if isinstance(tokens := getattr(config, name, None), int):
            return tokens
    if getattr(config.vision_config, "spatial_merge_size", None):
        return 1024  # of an image of 896 x 896 pixels, in patches of 14 merged by 2 x 2
    patches = _square(config.vision_config) or 576
    for name in ("scale_factor", "downsample_ratio"):
        if isinstance(factor := getattr(config, name, None), int | float):
            return int(patches * factor**2) if factor < 1 else patches // int(factor) ** 2
    return patches
