"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a grid as large as the image, merged 2 x 2; positions of several axes."""

from functools import partial
from typing import Any

from ..flow.locate import ImageGrid, plain_grid
from .base import Family, Media


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """`image_grid_thw` counts patches before merging."""
    merge = config.vision_config.spatial_merge_size
    sizes = media.rows("image_grid_thw", needed=True)
    return [plain_grid(height // merge, width // merge, time) for time, height, width in sizes]


def patches(config: Any, grid: tuple[int, int, int], count: int) -> int:
    """Pixels come as one row a patch."""
    return int(count * config.vision_config.spatial_merge_size**2)


_qwen = partial(Family, grids=grids, vision="visual", multi_axis_positions=True, pixels=patches)
QWEN2_VL = _qwen("qwen2_vl")
QWEN2_5_VL = _qwen("qwen2_5_vl")
QWEN3_VL = _qwen("qwen3_vl", deepstack=True)
