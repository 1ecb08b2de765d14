"""Mllama (Llama 3.2 Vision): text rows attend to the image in cross-attention layers; tiles with a class token each."""

from typing import Any

import torch

from ..flow.locate import ImageGrid, SampleLayout, dealt, no_place
from .base import Family, Media, tile_centres


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """Every image of the batch, padding images left out."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    ratios = config.vision_config.supported_aspect_ratios
    ids = media.rows("aspect_ratio_ids", needed=True)
    return [tile_grid(side, *ratios[number - 1]) for row in ids for number in row if number > 0]


def tile_grid(side: int, rows: int, cols: int) -> ImageGrid:
    """rows x cols tiles of one class token and side x side patches each."""
    parts = [part for tile in tile_centres(side, rows, cols) for part in (no_place(1), tile)]
    return ImageGrid((1, side * rows, side * cols), torch.cat(parts))


def cross_layouts(config: Any, media: Media) -> list[SampleLayout]:
    """Where the visual tokens stand among the cross-attention states [B, images * tiles * tokens]: the real tiles."""
    images = iter(grids(config, media))
    side = config.vision_config.image_size // config.vision_config.patch_size
    stride = config.vision_config.max_num_tiles * (side * side + 1)
    layouts = []
    for row in media.rows("aspect_ratio_ids", needed=True):
        own = {number: next(images) for number, ratio in enumerate(row) if ratio > 0}
        slots = [torch.arange(image.count) + number * stride for number, image in own.items()]
        layouts.append(dealt(torch.cat([torch.zeros(0, dtype=torch.long), *slots]), own.values()))
    return layouts


def cross_columns(config: Any, media: Media) -> int:
    """Cross-attention states of every sample, padding tiles and images included."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    images = torch.as_tensor(media.get("aspect_ratio_ids")).shape[-1]
    return int(images * config.vision_config.max_num_tiles * (side * side + 1))


MLLAMA = Family(
    "mllama",
    grids,
    vision="vision_model",
    cross_layouts=cross_layouts,
    cross_columns=cross_columns,
    pixel_axis="sample",
)
