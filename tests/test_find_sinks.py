"""`find_sinks` against loops over a plain model, its JSON and its picture, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import vlmprune
from tests.support.reference import language_model, visual_slots
from tests.support.running import outside
from tests.support.sinks import FAMILIES, LAYERS, PLANTED, naive_phi, planted, shared_planted, tau_of
from tests.support.tiny_families import build, make_inputs, row
from vlmprune.apps.cli import app
from vlmprune.attention.sink_dims import entering_states
from vlmprune.flow.sinks import ActiveWindow, active_window, secondary_sinks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def entering(model, inputs) -> list[torch.Tensor]:
    """The residual stream entering every layer of the plain model."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        for layer in language_model(model).layers
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_phi_sinks_and_shares_equal_loops(family):
    model, eager = shared_planted(family), shared_planted(family, "eager")
    inputs = make_inputs(model)
    model(**inputs)  # transformers itself sets things up on a model's first forward
    before = outside(model)
    report = vlmprune.find_sinks(model, **inputs)
    assert outside(model) == before
    assert report.dims == PLANTED
    assert report.separation.sinks > 0
    tau = tau_of(64)
    assert report.tau == pytest.approx(tau)
    states = entering(model, inputs)
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True, use_cache=False).attentions
    for b, sample in enumerate(report.samples):
        real = inputs["attention_mask"][b].nonzero()[:, 0].tolist()
        visual = visual_slots(model, inputs)[b].tolist()
        assert [real[j] for j in sample.visual.tolist()] == visual
        asking = [q for q in real if q > visual[-1]]
        for layer in range(LAYERS):
            values = [naive_phi(states[layer][b, j], PLANTED) for j in real]
            if layer:  # sinks are planted behind the hook that reads layer 0's
                assert sample.phi[layer].tolist() == pytest.approx(values, rel=1e-4)
            sinks = [j for j, value in zip(real, values, strict=True) if value >= tau] if layer >= 2 else []
            assert [visual[j] for j in sample.visual_sinks[layer]] == [j for j in sinks if j in visual]
            assert [real[j] for j in sample.text_sinks[layer]] == [j for j in sinks if j not in visual]
            free = [j for j in visual if j not in sinks]
            for head in range(4):
                rows = maps[layer][b, head, asking]
                image, on_free = rows[:, visual].sum(1), rows[:, free].sum(1)
                passed = (image >= 0.2) & (on_free >= 0.5 * image) & (len(free) < len(visual))
                assert float(sample.image_attention[layer, head]) == pytest.approx(float(image.mean()), abs=1e-5)
                share = float((image - on_free).sum() / image.sum())
                assert float(sample.sink_share[layer, head]) == pytest.approx(share, abs=1e-4)
                assert float(sample.gated[layer, head]) == pytest.approx(float(passed.float().mean()), abs=1e-5)
        assert sample.gated_heads[0] == sample.gated_heads[-1] == []
        assert any(sample.gated_heads)


def test_a_row_of_a_batch_is_the_row_alone():
    model = shared_planted("qwen2_5_vl")
    inputs = make_inputs(model)
    batch = vlmprune.find_sinks(model, **inputs)
    for i in range(3):
        alone = vlmprune.find_sinks(model, **row(inputs, i))
        torch.testing.assert_close(alone.samples[0].phi, batch.samples[i].phi, rtol=0, atol=1e-4)
        assert alone.samples[0].visual_sinks == batch.samples[i].visual_sinks
        assert alone.samples[0].primary == batch.samples[i].primary == 0


def test_a_wrapped_model_is_looked_at_plain_and_stays_wrapped():
    model = shared_planted("llava")
    inputs = make_inputs(model)
    plain = vlmprune.find_sinks(model, **inputs)
    with vlmprune.wrap(model, [vlmprune.FastV(keep=2), vlmprune.VAR()]) as pruned:
        assert vlmprune.find_sinks(model, **inputs).to_dict() == plain.to_dict()
        model(**inputs)
        assert pruned.report.kept_tokens == [2, 2, 2]


def test_planted_sinks_are_found_by_both_definitions():
    """A token that spikes as BOS does also points where BOS points."""
    model = planted("llava", size=400.0)
    sample = vlmprune.find_sinks(model, **make_inputs(model)).samples[0]
    assert sample.agreement is not None
    assert sample.agreement > 0.9


def test_no_sinks_at_all():
    model = planted("llava", dims=())
    report = vlmprune.find_sinks(model, tau=7.9, **make_inputs(model))
    assert report.dims == ()
    assert "no sink dimensions" in report.notes[0]
    assert not any(any(layer) for layer in report.samples[0].visual_sinks)


def test_a_model_too_shallow_for_sinks():
    model = build("llava", layers=2)
    report = vlmprune.find_sinks(model, **make_inputs(model))
    assert report.dims == ()
    assert report.separation.sinks == 0
    assert report.plot().mode == "RGB"


def test_the_window_and_secondary_sinks_on_made_up_numbers():
    norms = torch.tensor([1.0, 1.2, 90.0, 95.0, 96.0, 97.0, 98.0, 99.0, 98.0, 3.0])  # made by layer 1, gone after 8
    assert active_window(norms) == ActiveWindow(2, 8)
    assert active_window(torch.tensor([1.0, 1.1, 50.0, 60.0])).last == 2  # never drops: until the last layer
    cosines = torch.zeros(9, 6)
    cosines[:, 0] = 1.0  # the primary itself
    cosines[2:, 1] = -0.95  # from the start of the window to its end, pointing the other way
    cosines[4:, 2] = 0.95  # 5 layers, from 4 on
    cosines[6:8, 3] = 0.95  # 2 layers
    cosines[0:2, 4] = 0.99  # before the window
    found = [(s.position, s.created, s.lifetime, s.kind) for s in secondary_sinks(cosines, 0, ActiveWindow(2, 8))]
    assert found == [(1, 2, 7, "primary-like"), (2, 4, 5, "secondary"), (3, 6, 2, "noise")]


def test_json_text_and_picture():
    model = shared_planted("smolvlm")
    inputs = make_inputs(model)
    report = vlmprune.find_sinks(model, **inputs)
    record = json.loads(json.dumps(report.to_dict()))
    assert record["sink_dims"] == list(PLANTED)
    assert len(record["samples"]) == 3
    assert len(record["samples"][1]["phi"]) == LAYERS
    assert f"sink dimensions   {PLANTED[0]}, {PLANTED[1]}" in str(report)
    picture = Image.effect_noise((50, 40), 60)
    plain, over = report.plot(), report.plot(picture, sample=1, layer=3)
    assert plain.mode == over.mode == "RGB"
    assert plain.size == over.size
    assert plain.tobytes() != over.tobytes()
    for bad in ({"sample": 3}, {"sample": -1}, {"number": 1}, {"layer": LAYERS}):
        with pytest.raises(vlmprune.VlmpruneError):
            report.plot(**bad)


def test_the_command(tmp_path: Path):
    out = tmp_path / "sinks.png"
    result = CliRunner().invoke(app, ["sinks", "--json", "--plot", str(out), "--tau", "2"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["question"] == "What colour is the star?"
    assert len(record["samples"][0]["visual"]) == 196
    with Image.open(out) as picture:
        assert picture.size[0] > 900
    shown = CliRunner().invoke(app, ["sinks"])
    assert shown.exit_code == 0
    assert "visual sinks" in shown.stdout


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "gemma3"])
def test_one_image_token_too_many_is_one_sentence(family: str) -> None:
    model = build(family)
    inputs = row(make_inputs(model), 0)
    image = model.config.image_token_id
    last = (inputs["input_ids"][0] != image).nonzero()[-1]
    inputs["input_ids"] = inputs["input_ids"].index_fill(1, last, image)
    with pytest.raises(vlmprune.VlmpruneError, match="prepare text and images with the model's own processor"):
        vlmprune.find_sinks(model, **inputs)


def test_a_model_that_is_being_trained_drops_nothing_out_meanwhile():
    """What was found with dropout was remembered for the model's life, and took random numbers of the caller's."""
    model = build("llava", text={"attention_dropout": 0.5})
    inputs = make_inputs(model)
    wanted = vlmprune.find_sinks(model, **inputs, sink_dims=[3]).to_dict()
    model.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert vlmprune.find_sinks(model, **inputs, sink_dims=[3]).to_dict() == wanted
    states = entering_states(language_model(model), [5, 7], torch.device("cpu"))
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert torch.equal(states, entering_states(language_model(model.eval()), [5, 7], torch.device("cpu")))
