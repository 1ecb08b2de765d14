"""InternVL: an image is one run of tokens, tile after tile, the whole image (thumbnail) last if there are several."""

from typing import Any

from ..flow.locate import ImageGrid, visual_runs
from .base import Family, Media
from .idefics3 import tiled_grid


def grids(config: Any, media: Media) -> list[ImageGrid]:
    """Tiles and the thumbnail; the pixel shuffle merges patches by `downsample_ratio`."""
    assert media.visual is not None
    side = int(config.vision_config.image_size[0] // config.vision_config.patch_size[0] * config.downsample_ratio)
    tiles = [length // (side * side) - 1 for visual in media.visual for _, length in visual_runs(visual)]
    return [tiled_grid(side, *rows_and_cols(one)) for one in tiles]


def rows_and_cols(tiles: int) -> tuple[int, int]:
    """The arrangement of `tiles` tiles. The model does not know it: the squarest is assumed, wide before tall."""
    rows = max((r for r in range(1, tiles + 1) if tiles % r == 0 and r * r <= tiles), default=0)
    return rows, tiles // rows if rows else 0


def tiles(config: Any, grid: tuple[int, int, int], count: int) -> int:
    """Pixels come as one row a tile."""
    return count // (grid[1] * grid[2])


INTERNVL = Family("internvl", grids, pixels=tiles)
