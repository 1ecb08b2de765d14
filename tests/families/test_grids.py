"""Grids of every family against what transformers itself packs, and tile arrangements from real marker layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.tiny_families import build, make_inputs
from vlmprune import VlmpruneError
from vlmprune.families import FAMILIES, Media
from vlmprune.families.idefics3 import tile_arrangements
from vlmprune.families.internvl import rows_and_cols
from vlmprune.families.llava_next import anyres_grid
from vlmprune.flow.locate import layouts_from_mask, plain_grid, visual_runs

FAKE, LINE, WHOLE, IMAGE = 90, 91, 92, 7
TOKENS = 4


def prompt(*images: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Ids as the Idefics3 processor lays them out: tiles with row and column markers, then the whole image."""
    ids: list[int] = [1, 2]
    for rows, cols in images:
        for row in range(rows):
            for col in range(cols):
                ids += [FAKE, 100 + 10 * row + col] + [IMAGE] * TOKENS
            ids += [LINE]
        ids += ([LINE] if rows else []) + [FAKE, WHOLE] + [IMAGE] * TOKENS + [FAKE]
    out = torch.tensor([*ids, 3, 4])
    return out, out == IMAGE


SAMPLES = [((0, 0),), ((2, 3),), ((1, 4),), ((3, 1),), ((2, 2), (0, 0)), ((0, 0), (0, 0), (1, 2))]


@pytest.mark.parametrize("images", SAMPLES)
def test_rows_and_columns_of_tiles_are_read_from_the_markers(images: tuple[tuple[int, int], ...]) -> None:
    assert tile_arrangements(*prompt(*images), TOKENS) == list(images)


def test_images_without_markers_are_images_of_their_own() -> None:
    ids = torch.tensor([1, *[IMAGE] * 4, 5, 6, 8, *[IMAGE] * 4, 2])
    assert tile_arrangements(ids, ids == IMAGE, 4) == [(0, 0), (0, 0)]


def test_runs() -> None:
    assert visual_runs(torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool()) == [(0, 2), (3, 1), (6, 1)]


def test_the_squarest_arrangement_is_assumed_wide_before_tall() -> None:
    assert [rows_and_cols(n) for n in (0, 1, 2, 4, 6, 12)] == [(0, 0), (1, 1), (1, 2), (2, 2), (2, 3), (3, 4)]


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [[20, 30], [50, 17], [64, 64], [100, 23], [31, 90]])
def test_anyres_counts_equal_the_models_own_packing(family: str, size: list[int]) -> None:
    model = build(family)
    config, largest = model.config, 9 if family == "llava_onevision" else None
    side = config.vision_config.image_size // config.vision_config.patch_size
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    tiles = image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
    features = [torch.zeros(tiles, side * side, 4)]
    extra = {"vision_feature_select_strategy": "default"} if family == "llava_next" else {}
    packed, _ = model.model.pack_image_features(features, torch.tensor([size]), image_newline=torch.ones(4), **extra)
    grid = anyres_grid(config, size, True, largest)
    assert grid.count == len(packed[0])
    # Newline tokens are where the packed features hold the newline, and nowhere else.
    assert torch.equal(torch.isnan(grid.xy[:, 0]), packed[0][:, 0] == 1)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_spans_tile_the_visual_tokens_and_lie_inside_the_image(family: str) -> None:
    model = build(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.5) as pruned, torch.no_grad():
        model(**inputs)
    for sample, spans in enumerate(pruned.report.images):
        positions = torch.cat([span.positions for span in spans])
        assert positions.tolist() == list(range(pruned.report.visual_tokens[sample]))
        kept = torch.cat([span.kept for span in spans if span.kept is not None])
        assert torch.equal(kept, pruned.report.kept[sample])
        for span in spans:
            placed = span.xy[~torch.isnan(span.xy[:, 0])]
            assert len(placed)
            assert bool(((placed > 0) & (placed < 1)).all())


def test_images_that_do_not_add_up_raise() -> None:
    visual = torch.tensor([[True] * 5])
    with pytest.raises(VlmpruneError, match="own processor"):
        layouts_from_mask(visual, [plain_grid(2, 2)])


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next", "mllama"])
def test_missing_sizes_say_what_to_pass(family: str) -> None:
    config = build(family).config
    with pytest.raises(VlmpruneError, match="processor returns"):
        FAMILIES[family].grids(config, Media({}, torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool)))
