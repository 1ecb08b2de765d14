"""LLaVA-1.5 and relatives with one fixed grid an image; Pixtral towers give a grid as large as the image."""

from __future__ import annotations

from typing import Any

import torch

from ..flow.locate import ImageGrid, no_place, plain_grid
from .base import Family, Media, fixed_images


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """One token a patch, a class token in front where the feature selection keeps it."""
    vision = config.vision_config
    if sizes := media.rows("image_sizes"):
        return [plain_grid(height // vision.patch_size, width // vision.patch_size) for height, width in sizes]
    side = vision.image_size // vision.patch_size
    grid = plain_grid(side, side)
    if config.vision_feature_select_strategy == "full":  # the class token stays, in front
        grid = ImageGrid(grid.grid, torch.cat([no_place(1), grid.xy]))
    return [grid] * fixed_images(media, grid.count)


LLAVA = Family("llava", grids)
