"""Recurrent hybrids: exact is that a recurrence runs over the kept rows only, and attention hides columns as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.exactness import assert_exact
from tests.support.generic import IMAGE, TOKENS, build_generic, make_generic_inputs
from tests.support.generic.hybrids import MAKERS
from tests.support.grid import grid
from tests.support.masked_generate import dropped_of, forced_logits, hiding
from tests.support.tiny_families import build, make_inputs
from tests.test_bad_input import sentence
from vlmprune.families.generic import TESTED, decoder_of

HYBRIDS = sorted(set(MAKERS) & set(TESTED))
STEPS = 5


def first_attention(model: Any) -> int:
    kinds = model.config.get_text_config().layer_types
    return next(i for i, kind in enumerate(kinds) if kind in ("full_attention", "sliding_attention"))


@grid(model_type=HYBRIDS, attn=["sdpa", "eager"])
def test_past_the_first_attention_layer(model_type, attn):
    model = build_generic(model_type, attn=attn)
    layer = first_attention(model) + 1
    assert_exact(model, make_generic_inputs(model), vlmprune.Uniform(keep=0.4, layer=layer), layer)


@grid(model_type=["qwen3_5", "lfm2_vl"], layer=[0, 2])
def test_a_sample_without_an_image(model_type, layer):
    """It keeps all its rows, so the other one is filled up: its fillers would enter the state."""
    model = build_generic(model_type)
    ids = torch.tensor([[0, 0, 0, 0, *range(20, 40)], [1, 9, *[IMAGE] * TOKENS, 30, 31, *[IMAGE] * TOKENS, 40, 41]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": torch.zeros(2, 3, 8, 8)}
    report = assert_exact(model, inputs, vlmprune.Uniform(keep=0.3, layer=layer), layer)
    assert report.kept_tokens == [0, 6]


@grid(layer=[0, 2, 4], masked=[True, False])
def test_a_bare_second_turn_is_placed_after_the_whole_prompt(layer, masked):
    """Without position_ids the model asks the cache for its length, which is that of its first attention layer."""
    model = build_generic("qwen3_5")
    whole = make_generic_inputs(model)
    # Without grids: with them transformers itself fails in such a turn (5.24).
    inputs = {name: whole[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    if not masked:
        inputs = {"input_ids": whole["input_ids"][1:], "pixel_values": torch.zeros(2, 3, 8, 8)}
    turn = torch.randint(10, 99, (len(inputs["input_ids"]), 4), generator=torch.Generator().manual_seed(2))

    def talk() -> tuple[Tensor, int]:
        cache = model(**inputs, use_cache=True).cache
        padding = inputs.get("attention_mask")
        given = {} if padding is None else {"attention_mask": torch.cat([padding, torch.ones_like(turn)], dim=1)}
        length = cache.get_seq_length()
        return model(input_ids=turn, cache=cache, **given).logits, length

    with torch.no_grad():
        plain, length = talk()
        with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
            found, logical = talk()
            dropped = dropped_of(inputs["input_ids"] == IMAGE, pruned.report.kept)
        layers = decoder_of(model).layers
        left = inputs.get("attention_mask", torch.ones_like(dropped)).bool() & ~dropped
        with hiding(layers[0], layers[layer:], dropped, left):
            wanted, _ = talk()
    assert logical == length == inputs["input_ids"].shape[1]
    assert float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.std()))
    assert float((found - plain).abs().max()) > 1e-2


@grid(layer=[0, 2, 4])
def test_a_second_turn_of_generate(layer):
    model = build_generic("qwen3_5")
    inputs = make_generic_inputs(model)
    more = torch.randint(10, 99, (2, 3), generator=torch.Generator().manual_seed(2))
    tokens = torch.randint(10, 99, (2, 3), generator=torch.Generator().manual_seed(3))

    def talk() -> Tensor:
        out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True)
        ids = torch.cat([inputs["input_ids"], more], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], dim=1)
        return forced_logits(model, {"input_ids": ids, "attention_mask": mask, "cache": out.cache}, tokens)

    plain = talk()
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
        found = talk()
        dropped = dropped_of(inputs["input_ids"] == IMAGE, pruned.report.kept)
    layers = decoder_of(model).layers
    with hiding(layers[0], layers[layer:], dropped, inputs["attention_mask"].bool() & ~dropped):
        wanted = talk()
    assert float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.std()))
    assert float((found - plain).abs().max()) > 1e-2


def last_rows(model: Any, inputs: dict[str, Tensor], rows: int) -> Tensor:
    """Attention that each position gets from the last `rows` rows in each attention layer, summed over rows and heads:
    [layers, B, S]. The model is an eager one."""
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    return torch.stack([one[:, :, -rows:].sum(dim=(1, 2)) for one in attentions if one is not None])


def best(scores: Tensor, ids: Tensor, keep: float) -> list[int]:
    """The best-scored tokens of each image [TOKENS], of one sample."""
    slots = (ids == IMAGE).nonzero()[:, 0]
    kept = [
        start + own
        for start in range(0, len(slots), TOKENS)
        for own in scores[slots[start : start + TOKENS]].topk(round(keep * TOKENS)).indices.tolist()
    ]
    return sorted(kept)


@grid(model_type=["qwen3_5", "lfm2_vl", "lfm3_vl"], ahead=[1, 2])
def test_fastv_reads_the_last_attention_layer(model_type, ahead):
    model = build_generic(model_type, attn="eager")
    inputs = make_generic_inputs(model)
    layer = first_attention(model) + ahead
    received = last_rows(model, dict(inputs), 1)[0]
    report = assert_exact(model, inputs, vlmprune.FastV(keep=0.35, layer=layer), layer)
    assert [kept.tolist() for kept in report.kept] == [
        best(scores, ids, 0.35) for scores, ids in zip(received, inputs["input_ids"], strict=True)
    ]


@pytest.mark.parametrize("method", [vlmprune.FastV(), vlmprune.FastV(layer=3), vlmprune.Dart(), vlmprune.KNorm()])
def test_what_reads_attention_says_where_there_is_none(method):
    model = build_generic("qwen3_5")
    sentence(lambda: vlmprune.wrap(model, method), "layer=4", "attention layer", type(method).__name__)


def test_what_reads_the_layer_it_drops_before_names_those_that_attend():
    model = build_generic("qwen3_5")
    sentence(lambda: vlmprune.wrap(model, "pyramiddrop"), "does not attend", "3, 7")
    assert_exact(model, make_generic_inputs(model), vlmprune.PyramidDrop(layer=3, stages=1, keep=0.4), 3)


def test_interventions_change_attention_layers_only():
    model = build_generic("lfm3_vl")
    inputs = make_generic_inputs(model)
    sentence(lambda: vlmprune.wrap(model, vlmprune.ACT(heads=[(3, 0)])), "(3, 0)", "layers 2, 4, 6")
    with torch.no_grad():
        plain = model(**inputs).logits
        for method in (vlmprune.ACT(), vlmprune.VAR(sink_dims=list(range(0, 64, 4)), tau=1.5, gate=0.01, rho=0.01)):
            with vlmprune.wrap(model, method) as changed:
                assert float((model(**inputs).logits - plain).abs().max()) > 1e-3
            if method.name == "var":
                assert "visual sinks in layers 2, 4, 6" in changed.report.notes[0]
    shallow = build("llava", text={"model_type": "lfm2", "layer_types": ["conv", "full_attention", "conv", "conv"]})
    sentence(lambda: vlmprune.wrap(shallow, "act"), "none that attends")


def test_find_sinks_has_no_attention_to_report_of_recurrent_layers():
    model = build_generic("lfm2_vl")
    found = vlmprune.find_sinks(model, sink_dims=[20], **make_generic_inputs(model))
    for sample in found.samples:
        assert sample.phi.shape[0] == sample.image_attention.shape[0] == 6
        assert (sample.image_attention.sum(dim=1) > 0).tolist() == [False, False, True, False, False, True]


def test_sgl_with_a_hybrid_as_model_and_as_guide():
    model, guide = build_generic("qwen3_5", attn="eager"), build_generic("qwen3_5", attn="eager", seed=1)
    inputs = {name: value[1:] for name, value in make_generic_inputs(model).items()}
    behind = int((inputs["input_ids"][0] == IMAGE).nonzero()[-1])
    rows = inputs["input_ids"].shape[1] - 1 - behind
    wanted = best(last_rows(guide, inputs, rows).sum(dim=0)[0], inputs["input_ids"][0], 0.35)
    with vlmprune.wrap(model, "sgl", guide=guide, keep=0.35, layer=2) as pruned, torch.no_grad():
        model(**inputs)
    assert pruned.report.kept[0].tolist() == wanted


@grid(model_type=HYBRIDS)
def test_the_report_counts_what_the_cache_holds(model_type):
    model = build_generic(model_type)
    with vlmprune.wrap(model, "uniform", keep=0.4, layer=2) as pruned, torch.no_grad():
        cache = model.generate(**make_generic_inputs(model), max_new_tokens=1, return_dict_in_generate=True).cache
    held = 0
    for part in cache.layers:
        for name in ("keys", "values"):
            held += 0 if getattr(part, name, None) is None else getattr(part, name).nbytes
        for states in (getattr(part, "conv_states", {}), getattr(part, "recurrent_states", {})):
            held += sum(state.nbytes for state in states.values() if state is not None)
    assert pruned.report.kv_bytes == held < pruned.report.kv_bytes_full
    layers = pruned.report.layer_lengths
    assert layers[2] == layers[-1] < layers[0]


def test_new_positions_are_refused_where_they_cannot_be_computed():
    for text in ({"model_type": "biogpt"}, {"model_type": "lfm3", "layer_types": ["conv", "full_attention"] * 2}):
        model = build("llava", text=text)
        sentence(lambda m=model: vlmprune.wrap(m, "uniform", positions="compact"), "'original'", text["model_type"])
        with vlmprune.wrap(model, "uniform"), torch.no_grad():
            model(**make_inputs(model))


@grid(model_type=["lfm3_vl", "nemotron_h_omni"])
def test_gradient_checkpointing_runs_the_kept_rows_again(model_type):
    """Some of these layers are given no rotary embeddings, by which a layer that runs again was known."""
    model = build_generic(model_type)
    inputs = make_generic_inputs(model)
    found = []
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable()
        model.train()
        model.zero_grad()
        with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=1)):
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        found.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))
    assert len(found[0]) > 50
    assert torch.allclose(*found, rtol=1e-4)
