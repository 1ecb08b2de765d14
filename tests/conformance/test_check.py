"""`vlmprune.check` on right models and on planted faults."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.support.generic import build_generic, make_generic_inputs
from tests.support.grid import few
from tests.support.running import shared
from tests.support.saved_families import save
from tests.support.tiny_families import BOS, FAMILIES, IMAGE, PAD, VIDEO, build, make_inputs
from vlmprune import VlmpruneError
from vlmprune.conformance import batch
from vlmprune.families.generic import TESTED
from vlmprune.harness.models import load_models


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact(family):
    model = shared(family)
    report = vlmprune.check(model, make_inputs(model))
    assert report.ok, str(report)
    assert report.first_difference is None
    assert [one.layer for one in report.layers] == [0, 1, 2]  # of four
    assert report.adapter == "declared"


@pytest.mark.parametrize("model_type", few(TESTED, 8))
def test_every_tested_type_of_the_generic_adapter_is_exact(model_type):
    """One in eight in the short suite, the others where CI runs what it leaves out."""
    model = build_generic(model_type)
    report = vlmprune.check(model, make_generic_inputs(model))
    assert report.ok, str(report)
    assert report.adapter == "generic"
    assert report.bound < 1e-3


@pytest.mark.parametrize("which", [0, 1], ids=["large", "small"])
def test_the_bundled_pair_by_its_processor(which):
    *pair, processor = vlmprune.load_tiny()
    report = vlmprune.check(pair[which], processor, [1])
    assert report.ok, str(report)
    assert "exact" in str(report)
    assert not report.notes


@pytest.mark.parametrize("family", few(["qwen2_5_vl", "gemma3", "idefics3", "llava_next", "mllama"], 5))
def test_a_downloaded_folder_by_its_processor(family, tmp_path):
    models = load_models(str(save(family, tmp_path)), None, trust_remote_code=False)
    report = vlmprune.check(models.model, models.processor)
    assert report.ok, str(report)
    assert not report.notes


def test_a_wrapped_model_is_checked_as_the_plain_one_and_stays_wrapped():
    model = build("llava")
    with vlmprune.wrap(model, "fastv", keep=0.3) as pruned:
        assert vlmprune.check(model, make_inputs(model), [1]).ok
        model(**make_inputs(model))
        assert pruned.report.kept_tokens == [3, 3, 3]


@pytest.mark.parametrize(("family", "kinds"), [
    ("llava", ["full"] * 4),
    ("gemma3", ["window of 8", "window of 8", "full", "full"]),
    ("mllama", ["cross attention", "cross attention", "full", "full"]),
])  # fmt: skip
def test_kinds_are_what_layers_do(family, kinds):
    model = shared(family)
    assert sorted(vlmprune.check(model, make_inputs(model), [0]).kinds) == sorted(kinds)


def test_prompts_become_longer_than_the_window(monkeypatch):
    text = {"model_type": "mistral", "sliding_window": 48}
    model = build("llava", text=text)
    report = vlmprune.check(model, make_inputs(model), [0])
    assert report.ok, str(report)
    assert report.kinds == ["window of 48"] * 4
    monkeypatch.setitem(batch.LONGEST, "cpu", 50)
    report = vlmprune.check(model, make_inputs(model), [0])
    assert report.notes == ["A window of 48 tokens is longer than the prompts, so that it was not tried."]
    assert report.kinds == ["full"] * 4


def test_forced_tokens_mark_no_image_and_no_end():
    model = build("qwen2_5_vl")
    model.generation_config.eos_token_id = [11, 12]
    special = batch.special_ids(model)
    assert {IMAGE, VIDEO, PAD, BOS, 11, 12} <= special
    inputs = make_inputs(model)
    tokens = batch.forced_tokens(inputs["input_ids"], 50, special)
    assert tokens.shape == (3, 50)
    assert not set(tokens.flatten().tolist()) & special
    assert vlmprune.check(model, inputs, [0]).ok


def test_what_cannot_be_checked():
    model = shared("llava")
    with pytest.raises(VlmpruneError, match="layers=9 is not one of the model's 4 decoder layers"):
        vlmprune.check(model, make_inputs(model), [9])
    with pytest.raises(VlmpruneError, match="no image tokens"):
        vlmprune.check(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})
    with pytest.raises(VlmpruneError, match="layers=1 is no list"):
        vlmprune.check(model, make_inputs(model), 1)
    with pytest.raises(VlmpruneError, match="no image, such as pixel_values"):
        vlmprune.check(model, {name: value for name, value in make_inputs(model).items() if name != "pixel_values"})
    with pytest.raises(VlmpruneError, match="nothing but padding"):
        vlmprune.check(model, {**make_inputs(model), "attention_mask": torch.zeros(3, 19)})
    model = shared("mllama")
    inputs = {name: value for name, value in make_inputs(model).items() if name != "cross_attention_mask"}
    with pytest.raises(VlmpruneError, match="without their cross_attention_mask"):
        vlmprune.check(model, inputs)
