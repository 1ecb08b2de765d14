"""LLaVA-NeXT and LLaVA-OneVision: AnyRes, a base grid and then a finer grid of tiles with one newline token per row."""

import math
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from ..errors import VlmpruneError
from ..flow.locate import ImageGrid, grid_centres, no_place, video_grid
from .base import Family, Media


def anyres_grid(config: Any, size: list[int], tiled: bool, largest: int | None) -> ImageGrid:
    """One image of `size` (height, width): base grid, then the unpadded tiles with newlines.

    Args:
        tiled: False for OneVision's images in prompts of several, which are a base grid and one newline.
        largest: OneVision shrinks finer grids of more than this many tiles.
    """
    tile = config.vision_config.image_size
    side = tile // config.vision_config.patch_size
    base = [no_place(1)] if config.vision_feature_select_strategy == "full" and largest is None else []
    base.append(grid_centres(side, side))
    if not tiled:
        return ImageGrid((1, side, side), torch.cat([*base, no_place(1)]))
    rows, cols = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, tile)
    # transformers' own rounding decides how many rows and columns of padding are cut off.
    height, width = unpad_image(torch.empty(1, rows * side, cols * side), tuple(size)).shape[1:]
    if largest is not None:
        ratio = math.sqrt(height * width / (largest * side**2))
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
    fine = grid_centres(height, width).reshape(height, width, 2)
    newline = no_place(height).reshape(height, 1, 2)
    return ImageGrid((1, side, side), torch.cat([*base, torch.cat([fine, newline], dim=1).reshape(-1, 2)]))


def next_grids(config: Any, media: Media) -> list[ImageGrid]:
    """Every image tiled."""
    return [anyres_grid(config, size, True, None) for size in media.rows("image_sizes", needed=True)]


def onevision_grids(config: Any, media: Media) -> list[ImageGrid]:
    """Tiled where it is its prompt's only image; finer grids shrunk to `anyres_max_N` tiles."""
    aspect = media.get("vision_aspect_ratio") or config.vision_aspect_ratio
    largest = int(aspect.removeprefix("anyres_max_"))
    sizes = media.rows("image_sizes", needed=True)
    numbers = media.get("batch_num_images")
    tiled = [True] * len(sizes)
    if numbers is not None:
        tiled = [n == 1 for n in torch.as_tensor(numbers).tolist() for _ in range(n)]
    return [anyres_grid(config, size, fine, largest) for size, fine in zip(sizes, tiled, strict=True)]


def onevision_video_grids(config: Any, media: Media) -> list[ImageGrid]:
    """Every frame's patches pooled to half as many rows and columns, rounded up; one newline behind the whole video."""
    side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
    if (shape := media.get("video_shape")) is not None:  # [videos, frames, 3, H, W]
        frames = [shape[1]] * shape[0]
    elif (rows := media.get("feature_rows")) is not None:
        frames = [(own - 1) // side**2 for own in rows]
    else:
        raise VlmpruneError(
            "The prompt came without pixel_values_videos, so its frames are unknown; pass everything the processor "
            "returns."
        )
    return [video_grid(one, side, side, behind=1) for one in frames]


LLAVA_NEXT = Family("llava_next", next_grids)
LLAVA_ONEVISION = Family("llava_onevision", onevision_grids, video_grids=onevision_video_grids)
