"""Gemma 3 and PaliGemma: one fixed grid per image; image tokens attend to each other in both directions."""

import math
from typing import Any

from ..flow.locate import ImageGrid, plain_grid
from .base import Family, Media, same_grids


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """A square per image: Gemma 3's of `mm_tokens_per_image` tokens, PaliGemma's of one token a patch."""
    tokens = getattr(config, "mm_tokens_per_image", None)
    side = math.isqrt(tokens) if tokens else config.vision_config.image_size // config.vision_config.patch_size
    return same_grids(media, plain_grid(side, side))


GEMMA3 = Family("gemma3", grids, bidirectional=True)
PALIGEMMA = Family(
    "paligemma",
    grids,
    bidirectional=True,
    tower_layer=lambda config, tower: tower.encoder.layers[-1],
)
