"""Idefics3 and SmolVLM: an image is tiles, each its own run of tokens between marker tokens, and last the whole image.

The model never sees how many rows and columns of tiles an image has; the prompt's text shows it. A tile is
`<fake> <row_r_col_c>` and its tokens, a row ends with a line break, and the whole image is `<fake> <global-img>`, its
tokens, `<fake>`.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..flow.locate import ImageGrid, plain_grid, visual_runs
from .base import Family, Media, tile_centres


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """Tiles and the whole image, `scale_factor` x `scale_factor` patches per token."""
    assert media.visual is not None and media.input_ids is not None
    side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
    samples = zip(media.input_ids, media.visual, strict=True)
    return [tiled_grid(side, *one) for prompt in samples for one in tile_arrangements(*prompt, side * side)]


def tiled_grid(side: int, rows: int, cols: int) -> ImageGrid:
    """rows x cols tiles of side x side tokens in raster order, then the whole image; 0 x 0 is the whole alone."""
    whole = plain_grid(side, side)
    return ImageGrid(whole.grid, torch.cat([*tile_centres(side, rows, cols), whole.xy]))


def tile_arrangements(ids: Tensor, visual: Tensor, tokens: int) -> list[tuple[int, int]]:
    """Rows and columns of tiles of every image in a sample, (0, 0) for an image that was not split."""
    # Runs that touch are several images whose markers were left out.
    runs = [(start + i * tokens, tokens) for start, length in visual_runs(visual) for i in range(length // tokens)]
    if not runs:
        return []
    before = [tuple(ids[max(0, start - 2) : start].tolist()) for start, _ in runs]
    whole = before[-1]  # the last run is always a whole image, so its marker is that of whole images
    arrangements: list[tuple[int, int]] = []
    tiles: list[bool] = []
    for run, ((start, length), markers) in enumerate(zip(runs, before, strict=True)):
        following = runs[run + 1][0] if run + 1 < len(runs) else None
        joined = following is not None and 2 <= following - start - length <= 5 and markers != whole
        # A tile belongs to the image that goes on after it only if both open with the same <fake> marker.
        if joined and before[run + 1][0] == markers[0] == ids[start + length]:
            tiles.append(False)
        elif joined and before[run + 1][0] == markers[0]:
            tiles.append(True)  # a line break stands between: the row ends here
        else:
            arrangements.append(arrangement(tiles))
            tiles = []
    return arrangements


def arrangement(row_ends: list[bool]) -> tuple[int, int]:
    """(rows, cols) from one flag a tile, whether its row ends there."""
    if not row_ends:
        return 0, 0
    rows = max(1, sum(row_ends))
    return rows, len(row_ends) // rows


_idefics = partial(Family, grids=grids, text_model="text_model", vision="vision_model", pixel_axis="sample")
IDEFICS3 = _idefics("idefics3")
SMOLVLM = _idefics("smolvlm")
