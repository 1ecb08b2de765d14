"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a grid as large as the image or video, merged 2 x 2; positions of several axes."""

from functools import partial
from typing import Any

import torch

from ..flow.locate import ImageGrid, plain_grid, video_grid
from .base import Family, Media


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """`image_grid_thw` counts patches before merging."""
    merge = config.vision_config.spatial_merge_size
    sizes = media.rows("image_grid_thw", needed=True)
    return [plain_grid(height // merge, width // merge, time) for time, height, width in sizes]


def video_grids(config: Any, media: Media) -> list[ImageGrid]:
    """`video_grid_thw` likewise, its t counting pairs of sampled frames; Qwen2.5-VL is told the seconds between two."""
    merge = config.vision_config.spatial_merge_size
    sizes = media.rows("video_grid_thw", needed=True)
    steps = media.get("second_per_grid_ts")
    steps = [None] * len(sizes) if steps is None else torch.as_tensor(steps).flatten().tolist()
    steps = steps[:: max(1, len(steps) // max(1, len(sizes)))]  # beams repeat them, not the grids
    return [
        video_grid(t, h // merge, w // merge, seconds=None if step is None else [i * step for i in range(t)])
        for (t, h, w), step in zip(sizes, steps, strict=True)
    ]


def patches(config: Any, grid: tuple[int, int, int], count: int) -> int:
    """Pixels come as one row a patch."""
    return int(count * config.vision_config.spatial_merge_size**2)


_qwen = partial(
    Family, grids=grids, video_grids=video_grids, vision="visual", multi_axis_positions=True, pixels=patches
)
QWEN2_VL = _qwen("qwen2_vl")
QWEN2_5_VL = _qwen("qwen2_5_vl")
QWEN3_VL = _qwen("qwen3_vl", deepstack=True)
