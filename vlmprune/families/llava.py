"""LLaVA-1.5 and relatives with one fixed grid per image; Pixtral towers give a grid as large as the image."""

from typing import Any

import torch

from ..flow.locate import ImageGrid, no_place, plain_grid
from .base import Family, Media, same_grids


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """One token per patch, a class token in front where the feature selection keeps it."""
    vision = config.vision_config
    if sizes := media.rows("image_sizes"):
        return [plain_grid(height // vision.patch_size, width // vision.patch_size) for height, width in sizes]
    side = vision.image_size // vision.patch_size
    grid = plain_grid(side, side)
    if config.vision_feature_select_strategy == "full":  # the class token stays, in front
        grid = ImageGrid(grid.grid, torch.cat([no_place(1), grid.xy]))
    return same_grids(media, grid)


def tower_layer(config: Any, tower: Any) -> Any:
    """The layer that `vision_feature_layer` names (the last of several); Pixtral packs images, so it has none."""
    if not hasattr(tower, "encoder"):
        return None
    chosen = config.vision_feature_layer
    index = chosen if isinstance(chosen, int) else chosen[-1]
    # Hidden states are counted from the embeddings: -1 is the last layer's output, 1 the first layer's.
    return tower.encoder.layers[index if index < 0 else index - 1]


LLAVA = Family("llava", grids, tower_layer=tower_layer)
