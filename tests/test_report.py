"""The report: its numbers against counts made by hand, its forms, and its picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import vlmprune
from tests.support.generic import build_generic, make_generic_inputs
from tests.support.grid import grid
from tests.support.planted import Planted
from tests.support.tiny_families import FAMILIES, build, make_inputs
from vlmprune import VlmpruneError
from vlmprune.apps.demo.draw import overlay


def cache_bytes(cache: object) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)  # type: ignore[attr-defined]


@grid(family=FAMILIES, layer=[0, 2])
def test_cache_bytes_are_those_of_the_real_cache(family: str, layer: int) -> None:
    model = build(family)
    inputs = make_inputs(model)
    with torch.no_grad():
        full = cache_bytes(model(**inputs, use_cache=True).past_key_values)
        with vlmprune.wrap(model, "random", keep=0.4, layer=layer) as pruned:
            cache = model(**inputs, use_cache=True).past_key_values
    assert pruned.report.kv_bytes == cache_bytes(cache)
    assert pruned.report.kv_bytes_full == full


def test_flops_against_a_count_by_hand() -> None:
    model = build("llava", layers=3)
    inputs = make_inputs(model, text_lengths=(5,), images=(1,))
    text = model.config.text_config
    length, visual, keep, layer = inputs["input_ids"].shape[1], 9, 4, 1
    with vlmprune.wrap(model, "random", keep=keep, layer=layer) as pruned, torch.no_grad():
        model(**inputs)
    width, inner = text.hidden_size, text.intermediate_size
    kv = text.num_key_value_heads * text.head_dim
    queries = text.num_attention_heads * text.head_dim
    total = 0
    for i in range(3):
        rows = length if i < layer else length - visual + keep
        linear = width * queries * 2 + 2 * width * kv + 3 * width * inner
        pairs = sum(range(1, rows + 1))  # row r sees r keys
        total += 2 * rows * linear + 2 * pairs * queries * 2
    assert pruned.report.prefill_flops == total + 2 * width * text.vocab_size
    assert pruned.report.layer_lengths == [length, length - 5, length - 5]
    assert pruned.report.lm_tokens == 9
    assert pruned.report.layer_avg_tokens == pytest.approx((9 + 4 + 4) / 3)
    assert pruned.report.retention == pytest.approx((9 + 4 + 4) / 27)


def test_forms() -> None:
    model = build("llava_next")
    with vlmprune.wrap(model, "fastv", keep=0.4, layer=1) as pruned, torch.no_grad():
        with pytest.raises(VlmpruneError, match="no report yet"):
            _ = pruned.report
        model(**make_inputs(model))
    report = pruned.report
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    options = {"keep": 0.4, "layer": 1, "positions": "original", "top_p": None, "floor": 1, "exclude_sinks": False}
    assert record["method"] == {"name": "fastv", **options}
    assert record["kept"] == [kept.tolist() for kept in report.kept]
    assert set(report.seconds) == {"vision", "prefill", "total"}
    assert f"{sum(report.kept_tokens)} of {sum(report.visual_tokens)}" in str(report)
    assert len(str(report).splitlines()) < 12


def test_a_text_prompt_says_that_nothing_was_pruned() -> None:
    model = build("llava")
    with vlmprune.wrap(model, "random") as pruned, torch.no_grad():
        model(input_ids=torch.tensor([[1, 20, 21, 22]]))
    assert pruned.report.visual_tokens == pruned.report.kept_tokens == [0]
    assert pruned.report.retention == 1.0
    assert "no image" in pruned.report.notes[0]


def test_the_overlay_shows_kept_places_and_dims_the_others() -> None:
    model = build("llava")
    inputs = make_inputs(model, text_lengths=(5,), images=(1,))
    with vlmprune.wrap(model, Planted(plan=((0, 4),))) as pruned, torch.no_grad():
        model(**inputs)
    picture = Image.new("RGB", (90, 60), "white")
    shown = np.asarray(pruned.report.overlay(picture))
    assert shown.shape == (60, 90, 3)
    for cell in range(9):  # a 3 x 3 grid of 30 x 20 pixels
        centre = shown[cell // 3 * 20 + 10, cell % 3 * 30 + 15]
        assert (centre == 255).all() == (cell in (0, 4))
    with pytest.raises(VlmpruneError, match="no image 3 in sample 0"):
        pruned.report.overlay(picture, number=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_an_overlay(family: str) -> None:
    model = build(family)
    with vlmprune.wrap(model, "uniform", keep=0.5) as pruned, torch.no_grad():
        model(**make_inputs(model))
    bright = np.asarray(pruned.report.overlay(Image.new("RGB", (60, 60), "white"))).min(axis=2) == 255
    assert 0.2 < bright.mean() < 0.9


def test_an_image_without_places_has_a_report_and_no_overlay():
    """Of a model whose adapter is generic and whose tower says nothing of a grid."""
    model = build_generic("qianfan_ocr")
    model.config.vision_config.image_size = 7
    with vlmprune.wrap(model, "uniform", keep=0.4) as pruned, torch.no_grad():
        model(**make_generic_inputs(model))
        report = pruned.report
    (first, *_), _ = report.images
    assert first.grid == (1, 1, 9)
    assert json.loads(json.dumps(report.to_dict()))["images"][0][0]["xy"] == [[None, None]] * 9
    with pytest.raises(VlmpruneError, match=r"overlay\(\) needs to know where visual tokens lie"):
        report.overlay(Image.new("RGB", (28, 28)))
    grey = Image.new("RGB", (28, 28), (90, 90, 90))
    assert overlay(grey, kept=first, side=28).getpixel((5, 5)) == (90, 90, 90)
