"""Gemma 3 and PaliGemma: one fixed grid per image; image tokens attend to each other in both directions."""

import math
from typing import Any

from ..flow.locate import ImageGrid, plain_grid
from .base import Family, Media, same_grids


def gemma3_grids(config: Any, media: Media) -> list[ImageGrid]:
    """A square of `mm_tokens_per_image` tokens per image."""
    side = math.isqrt(config.mm_tokens_per_image)
    return same_grids(media, plain_grid(side, side))


def paligemma_grids(config: Any, media: Media) -> list[ImageGrid]:
    """One token a patch."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return same_grids(media, plain_grid(side, side))


GEMMA3 = Family("gemma3", gemma3_grids, bidirectional=True)
PALIGEMMA = Family(
    "paligemma",
    paligemma_grids,
    bidirectional=True,
    tower_layer=lambda config, tower: tower.encoder.layers[-1],
)
