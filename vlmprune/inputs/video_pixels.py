"""Bytes of frames as the numbers a vision tower reads: resized, cropped, scaled and cut into patches, on torch alone.

Shapes: T frames, H height, W width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import VlmpruneError

_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers


def resized(video: Tensor, size: tuple[int, int], resample: int | None) -> Tensor:
    """Bytes [T, 3, H, W] at another size, by torch's antialiased filters for bytes, as torchvision calls them."""
    if tuple(video.shape[-2:]) == size:
        return video
    mode = _FILTERS.get(2 if resample is None else int(resample))
    if mode is None:
        raise VlmpruneError(f"resample={resample!r} is no filter for videos; use 1 (Lanczos), 2 or 3 (bicubic).")
    try:
        return functional.interpolate(video, size=list(size), mode=mode, align_corners=False, antialias=True)
    except (NotImplementedError, ValueError):  # Lanczos came with torch 2.12; transformers takes bicubic without it
        if mode != "lanczos":
            raise
        return functional.interpolate(video, size=list(size), mode="bicubic", align_corners=False, antialias=True)


def scaled(video: Tensor, settings: dict[str, Any]) -> Tensor:
    """Bytes as the numbers that the tower reads."""
    factor = settings["rescale_factor"] if settings["do_rescale"] else None
    if not settings["do_normalize"]:
        return video if factor is None else video * factor
    mean, std = torch.tensor(settings["image_mean"]), torch.tensor(settings["image_std"])
    if factor is not None:  # both at once, as transformers does
        mean, std = mean * (1.0 / factor), std * (1.0 / factor)
    return (video.float() - mean[:, None, None]) / std[:, None, None]


def cropped(video: Tensor, size: dict[str, int]) -> Tensor:
    """The middle of a video, with zeros around it where it is smaller: [T, 3, height, width]."""
    height, width = size["height"], size["width"]
    high, wide = max(0, height - video.shape[-2]), max(0, width - video.shape[-1])
    video = functional.pad(video, (wide // 2, (wide + 1) // 2, high // 2, (high + 1) // 2))
    top, left = int((video.shape[-2] - height) / 2), int((video.shape[-1] - width) / 2)
    return video[..., top : top + height, left : left + width]


def multiple_of(
    height: int, width: int, factor: int, least: int, most: int, *, frames: int = 1, counted: int = 1
) -> tuple[int, int]:
    """The size nearest to H x W whose sides are multiples of `factor` and whose area lies in `least`..`most`.

    Args:
        frames: how many count towards the area. counted: the same, rounded as the family rounds it.
    Raises:
        VlmpruneError: one side is more than 200 times as long as the other.
    """
    if max(height, width) > 200 * min(height, width):
        raise VlmpruneError(f"Frames of {width} x {height} pixels are too narrow; one side may be 200 times the other.")
    sides = height, width
    rows, cols = (round(side / factor) * factor for side in sides)
    if counted * rows * cols > most:
        shrink = math.sqrt(frames * height * width / most)
        rows, cols = (max(factor, math.floor(side / shrink / factor) * factor) for side in sides)
    elif counted * rows * cols < least:
        grow = math.sqrt(least / (frames * height * width))
        rows, cols = (math.ceil(side * grow / factor) * factor for side in sides)
    return rows, cols


def patchified(video: Tensor, settings: dict[str, Any]) -> tuple[Tensor, list[int]]:
    """Patches of [T, 3, H, W] in the order in which they are merged, the last frame repeated to fill a pair.

    Returns:
        [t * h * w, 3 * pair * patch * patch] and the grid [t, h, w].
    """
    pair, merge, side = settings["temporal_patch_size"], settings["merge_size"], settings["patch_size"]
    if missing := -len(video) % pair:
        video = torch.cat([video, video[-1:].expand(missing, -1, -1, -1)])
    grid = [len(video) // pair, video.shape[-2] // side, video.shape[-1] // side]
    # time, pair, colour, then rows and columns each as merged block, place in the block, pixel
    cells = video.reshape(grid[0], pair, 3, grid[1] // merge, merge, side, grid[2] // merge, merge, side)
    return cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1), grid
