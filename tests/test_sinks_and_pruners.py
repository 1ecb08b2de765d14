"""Lists of methods, and rankings that leave visual sinks out."""

from __future__ import annotations

import json

import pytest
import torch

import vlmprune
from tests.support.planted import Planted
from tests.support.reference import language_model, visual_slots
from tests.support.running import assert_near, generate
from tests.support.sinks import PLANTED, naive_phi, shared_planted, tau_of
from tests.support.tiny_families import build, make_inputs

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def naive_sinks(model, inputs, layer: int) -> list[list[int]]:
    """Per sample the visual tokens (0..V-1) with phi >= tau entering a layer of the plain model."""
    entering: list[torch.Tensor] = []
    decoder = language_model(model).layers[layer]
    handle = decoder.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    (hidden,) = entering
    tau = tau_of(hidden.shape[-1])
    return [
        [j for j, slot in enumerate(slots.tolist()) if naive_phi(row[slot], PLANTED) >= tau]
        for row, slots in zip(hidden, visual_slots(model, inputs), strict=True)
    ]


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_fastv_ranks_sinks_last(family):
    model = shared_planted(family)
    inputs = make_inputs(model)
    sinks = naive_sinks(model, inputs, 2)
    chosen = {}
    for exclude in (False, True):
        with vlmprune.wrap(model, vlmprune.FastV(keep=0.5, exclude_sinks=exclude)) as pruned:
            model(**inputs)
            chosen[exclude] = [kept.tolist() for kept in pruned.report.kept]
            visual = pruned.report.visual_tokens
    for plain, without, sunk, count in zip(chosen[False], chosen[True], sinks, visual, strict=True):
        assert sunk
        assert len(without) == len(plain)
        room = count - len(sunk)
        assert len(set(without) & set(sunk)) == max(0, len(without) - room)
    assert chosen[True] != chosen[False]


def test_the_guide_of_sgl_gives_its_sinks_no_importance():
    small, model = shared_planted("smolvlm"), build("smolvlm", layers=6, seed=1)
    inputs = make_inputs(model)
    kept = {}
    often = [set(sunk) for sunk in naive_sinks(small, inputs, 3)]  # planted ones are sinks in all layers
    for exclude in (False, True):
        with vlmprune.wrap(model, vlmprune.SGL(guide=small, keep=3, layer=1, exclude_sinks=exclude)) as pruned:
            model.generate(**inputs, max_new_tokens=3)
            kept[exclude] = [set(one.tolist()) for one in pruned.report.kept]
    assert not any(one & sunk for one, sunk in zip(kept[True], often, strict=True))
    assert any(one & sunk for one, sunk in zip(kept[False], often, strict=True))


def test_a_list_of_methods_is_described_part_by_part():
    model = build("llava", layers=6)
    with vlmprune.wrap(model, [vlmprune.FastV(keep=0.5), vlmprune.VAR(sink_dims=(3,)), vlmprune.ACT()]) as pruned:
        model(**make_inputs(model))
        report = pruned.report
    record = json.loads(json.dumps(report.to_dict()))["method"]
    assert record["name"] == "fastv+var+act"
    assert record["fastv"]["keep"] == 0.5
    assert record["var"]["sink_dims"] == [3]
    assert "fastv(keep=0.5, layer=2" in str(report)
    assert " + act(beta=0.4, threshold=0.1, heads=None)" in str(report)
    assert sum(report.kept_tokens) < sum(report.visual_tokens)


def test_names_and_lists_of_one():
    model = shared_planted("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "var", p=0.7):
        expected = generate(model, inputs)[0]
    for method in ([vlmprune.VAR(p=0.7)], [vlmprune.Unpruned(), vlmprune.VAR(p=0.7)], (vlmprune.VAR(0.7),)):
        with vlmprune.wrap(model, method):
            assert torch.equal(generate(model, inputs)[0], expected)
    with vlmprune.wrap(model, ["var", "act"]):
        assert not torch.equal(generate(model, inputs)[0], expected)


def test_sgl_beside_var_without_an_exit_is_var_on_what_sgl_keeps():
    model, small = shared_planted("llava"), build("llava", seed=2)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, [vlmprune.SGL(guide=small, keep=0.5, layer=3), vlmprune.VAR()]) as pruned:
        model.generate(**inputs, max_new_tokens=3)
        plan, record, notes = pruned.report.kept, pruned.report.method, pruned.report.notes
        logits = model(**inputs).logits[:, -1]
        again = pruned.report.kept
    assert record["name"] == "sgl+var"
    assert any("sink dimensions" in note for note in notes)
    same = tuple(tuple(one.tolist()) for one in again)
    assert all(len(a) == len(b) for a, b in zip(plan, again, strict=True))
    with vlmprune.wrap(model, [Planted(plan=same, layer=3), vlmprune.VAR()]):
        assert_near(logits, model(**inputs).logits[:, -1])
