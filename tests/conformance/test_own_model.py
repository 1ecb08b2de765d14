"""A user's own model class, known to nobody else: it wraps through the generic adapter as it is, and is exact."""

from __future__ import annotations

import logging

import pytest
import torch

import vlmprune
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.own_model import IMAGE, TOKENS, Attention, own_inputs, own_model
from vlmprune import api


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_pruned_equals_the_masked_twin(layer):
    model = own_model()
    inputs = own_inputs(model)
    tokens = torch.randint(10, 99, (2, 6), generator=torch.Generator().manual_seed(1))
    plain = forced_logits(model, dict(inputs), tokens)
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
        found = forced_logits(model, dict(inputs), tokens)
        report = pruned.report
    assert (report.adapter, report.visual_tokens, report.kept_tokens) == ("generic", [TOKENS, 2 * TOKENS], [4, 8])
    dropped = dropped_of(inputs["input_ids"] == IMAGE, report.kept)
    masked = masked_forced_logits(model, model.model.decoder.layers, dict(inputs), dropped, layer, tokens)
    assert float((found - masked).abs().max()) <= 1e-5 * max(1.0, float(masked.std()))
    assert float((found - plain).abs().max()) > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("remembering", [(), (1,), (1, 3)])
def test_it_is_exact_with_and_without_recurrent_layers(remembering, dtype):
    model = own_model(remembering=remembering).to(dtype)
    report = vlmprune.check(model, own_inputs(model))
    assert report.ok, str(report)
    assert [i for i, kind in enumerate(report.kinds) if kind == "recurrent"] == list(remembering)
    assert dtype == torch.bfloat16 or not report.notes
    assert report.layers[0].moved > 4 * report.bound


@pytest.mark.parametrize("method", ["uniform", "random", "fastv", "divprune", "knorm"])
def test_methods_work_on_it(method):
    model = own_model()
    with vlmprune.wrap(model, method, keep=4) as pruned:
        out = model.generate(**own_inputs(model), max_new_tokens=3, do_sample=False)
        assert out.shape == (2, own_inputs(model)["input_ids"].shape[1] + 3)
        assert pruned.report.kept_tokens == [4, 8]


def test_attention_that_cannot_be_read_is_said(monkeypatch):
    def forward(self, states, position_embeddings, attention_mask, cache):
        value = self.v_proj(states)[:, None]
        value = value if cache is None else cache.update(value, value, self.layer_idx)[1]
        scores = torch.zeros(len(states), 1, states.shape[1], value.shape[2]).masked_fill(~attention_mask, -1e9)
        return self.o_proj((scores.softmax(-1) @ value)[:, 0])

    monkeypatch.setattr(Attention, "forward", forward)
    model = own_model()
    assert vlmprune.check(model, own_inputs(model)).ok
    with vlmprune.wrap(model, "fastv", keep=4), pytest.raises(vlmprune.VlmpruneError, match="ALL_ATTENTION_FUNCTIONS"):
        model.generate(**own_inputs(model), max_new_tokens=2)


def test_it_guides_and_is_guided():
    model, guide = own_model(), own_model(seed=1, num_hidden_layers=2)
    with vlmprune.wrap(model, vlmprune.SGL(guide=guide, keep=4)) as pruned:
        model.generate(**own_inputs(model), max_new_tokens=3, do_sample=False)
        assert pruned.report.kept_tokens == [4, 8]
        assert pruned.report.guide_flops > 0


def test_wrap_suggests_the_check_once(caplog, monkeypatch):
    monkeypatch.setattr(api, "_suggested", set())
    with caplog.at_level(logging.INFO, logger="vlmprune"):
        for _ in range(2):
            vlmprune.wrap(own_model(), "uniform").unwrap()
    (said,) = caplog.messages
    assert "vlmprune.check(model, processor)" in said
    assert "'own_vlm'" in said


def test_one_sample_becomes_a_padded_batch():
    model = own_model()
    seen = []
    handle = model.model.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    one = own_inputs(model, images=(1,), words=(6,))
    report = vlmprune.check(model, one)
    handle.remove()
    assert report.ok, str(report)
    assert not report.notes
    prompt = seen[0]
    assert prompt.shape == (2, one["input_ids"].shape[1])
    assert (prompt == 0).sum(1).tolist() == [2, 0]


def test_what_could_not_be_tried_is_said():
    model = own_model()
    inputs = own_inputs(model, images=(1,), words=(2,))  # the beginning, one word before the image, one behind it
    inputs["input_ids"][inputs["input_ids"] < IMAGE] = 1
    report = vlmprune.check(model, inputs)
    assert report.ok, str(report)
    assert report.notes == ["The prompts have no words that could be left out, so padding was not tried."]
    refusing = own_model()

    def refuse(module, args):
        if args[1] is not None and not bool(args[1].all()):
            raise ValueError("no padding here")

    refusing.model.decoder.register_forward_pre_hook(refuse)
    report = vlmprune.check(refusing, own_inputs(refusing, images=(1,), words=(6,)))
    assert report.ok, str(report)
    assert "not tried: the model does not take them (no padding here)" in report.notes[0]


def test_padding_behind_a_prompt_is_moved_in_front():
    model = own_model()
    inputs = own_inputs(model)
    gap = int((inputs["attention_mask"][0] == 0).sum())
    behind = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        behind[name] = torch.stack([inputs[name][0].roll(-gap), inputs[name][1]])
    report, plain = vlmprune.check(model, behind), vlmprune.check(model, inputs)
    assert report.ok, str(report)
    assert report.to_dict() == plain.to_dict()
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    rolled = torch.stack([positions[0].roll(-gap), positions[1]])
    report = vlmprune.check(model, {**behind, "position_ids": rolled})
    assert report.ok, str(report)


def test_a_model_that_returns_nan_is_said():
    model = own_model()
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(vlmprune.VlmpruneError, match="own logits hold NaN"):
        vlmprune.check(model, own_inputs(model))


def test_logits_that_are_ruled_out_are_alike():
    model = own_model()
    model.lm_head.register_forward_hook(lambda module, args, out: out.index_fill(-1, torch.tensor([5]), -torch.inf))
    report = vlmprune.check(model, own_inputs(model))
    assert report.ok, str(report)


def test_inputs_that_the_model_does_not_take_are_said():
    model = own_model()
    inputs = own_inputs(model)
    with pytest.raises(vlmprune.VlmpruneError, match="does not run on these prompts"):
        vlmprune.check(model, {**inputs, "pixel_values": inputs["pixel_values"][:1]})
