"""What cannot be asked of VAR, ACT and find_sinks raises one sentence with the value and the remedy."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.support.running import shared
from tests.support.sinks import planted, shared_planted
from tests.support.tiny_families import build, make_inputs
from tests.test_bad_input import sentence
from vlmprune.inputs.chat import prepare, unknown_words

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "x", None, True])
@pytest.mark.parametrize("option", ["p", "rho", "gate"])
def test_shares(option, value):
    sentence(lambda: vlmprune.VAR(**{option: value}), f"{option} must be a number from 0 to 1, got {value!r}")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "x", True])
def test_tau(value):
    sentence(lambda: vlmprune.VAR(tau=value), f"got {value!r}", "above 0")
    sentence(lambda: vlmprune.find_sinks(shared("llava"), tau=value), "tau must be", f"got {value!r}")


def test_tau_that_no_token_can_reach():
    sentence(
        lambda: vlmprune.wrap(shared_planted("llava"), vlmprune.VAR(tau=8.1)), "tau=8.1", "sqrt(64) = 8.00", "2.50"
    )
    with vlmprune.wrap(shared_planted("llava"), vlmprune.VAR(tau=8.0)):
        pass


@pytest.mark.parametrize("dims", [[], [-1], [1.5], "5", 5, [True]])
def test_no_dimensions(dims):
    sentence(lambda: vlmprune.VAR(sink_dims=dims), "sink_dims must be", f"got {dims!r}", "None")


def test_dimensions_outside_the_width():
    sentence(
        lambda: vlmprune.wrap(shared_planted("llava"), vlmprune.VAR(sink_dims=[3, 64])), "(3, 64)", "64", "0 to 63"
    )
    inputs = make_inputs(shared("llava"))
    sentence(lambda: vlmprune.find_sinks(shared("llava"), sink_dims=[64], **inputs), "0 to 63")


@pytest.mark.parametrize("option", [{"beta": -0.1}, {"beta": 1.5}, {"threshold": 2.0}, {"threshold": float("nan")}])
def test_act_options(option):
    ((name, value),) = option.items()
    sentence(lambda: vlmprune.ACT(**option), f"{name} must be a number from 0 to 1, got {value!r}")


@pytest.mark.parametrize("heads", ["2.0", 5, [3], [(1, 2, 3)], [(1, -1)], [(0.5, 1)], [("2", "1")]])
def test_no_heads(heads):
    sentence(lambda: vlmprune.ACT(heads=heads), "heads must be", "pairs", repr(heads))


@pytest.mark.parametrize("head", [(0, 0), (1, 0), (5, 0), (2, 4)])
def test_heads_the_model_does_not_have(head):
    sentence(
        lambda: vlmprune.wrap(shared_planted("llava"), vlmprune.ACT(heads=[head])), str(head), "layers 2 to 4", "0 to 3"
    )


@pytest.mark.parametrize("method", ["var", "act"])
def test_models_without_a_layer_to_change(method):
    sentence(lambda: vlmprune.wrap(build("llava", layers=3), method), repr(method), "3 layers", "deeper")


@pytest.mark.parametrize("method", ["var", "act", vlmprune.FastV(layer=2, exclude_sinks=True)])
def test_cross_attention_families(method):
    sentence(lambda: vlmprune.wrap(build("mllama", layers=6), method), "'mllama'", "cross-attention")
    sentence(lambda: vlmprune.find_sinks(shared("mllama")), "'mllama'")


def test_prompts_without_an_image():
    model = shared_planted("llava")
    text = make_inputs(model, images=(0, 0, 0))
    sentence(lambda: vlmprune.find_sinks(model, **text), "no image tokens")
    sentence(lambda: vlmprune.find_sinks(model), "no image tokens")
    with torch.no_grad():
        plain = model(**text).logits
        with vlmprune.wrap(model, vlmprune.VAR()) as pruned:
            assert torch.equal(model(**text).logits, plain)
            assert any("no image" in note for note in pruned.report.notes)


@pytest.mark.parametrize("method", ["var", "act"])
def test_embeddings_without_ids(method):
    model = shared_planted("llava")
    embeddings = torch.randn(1, 5, 64)
    with vlmprune.wrap(model, method):
        sentence(lambda: model(inputs_embeds=embeddings), "input_ids")


def test_a_new_image_in_a_later_turn():
    model = shared_planted("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, vlmprune.VAR()), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"]] * 2, dim=1)
        sentence(lambda: model(**{**inputs, "attention_mask": mask}, past_key_values=cache), "later turn", "one prompt")


def test_a_cache_filled_before_the_wrap_is_said():
    model = shared_planted("llava")
    inputs = make_inputs(model)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, 1, dtype=torch.long)], dim=1)
        with vlmprune.wrap(model, "var"), pytest.warns(UserWarning, match="cache was filled before 'var'"):
            model(input_ids=torch.tensor([[20]] * 3), attention_mask=mask, past_key_values=cache)


def test_gradient_checkpointing():
    model = planted("llava").train()
    model.gradient_checkpointing_enable()
    with vlmprune.wrap(model, "var"):
        sentence(lambda: model(**make_inputs(model), use_cache=False), "checkpointing", "disable")


def test_no_vision_language_model():
    sentence(lambda: vlmprune.find_sinks(torch.nn.Linear(2, 2)), "Linear", kind=vlmprune.UnsupportedModelError)


@pytest.mark.parametrize("layer", [1.5, 2.0, True, "2", -1, 99])
def test_a_layer_that_the_plot_cannot_show(layer):
    large, _, processor = vlmprune.load_tiny()
    image, question = vlmprune.tiny.example()
    report = vlmprune.find_sinks(large, **prepare(processor, image, question))
    sentence(lambda: report.plot(image, layer=layer), repr(layer), "an int from 0 to 5")


def test_words_are_named_once_and_of_many_the_first():
    """A question of 3,000 unknown words named all of them in its warning."""
    _, _, processor = vlmprune.load_tiny()
    question = " ".join(f"zqx{number % 100}" for number in range(3000)) + " " + "w" * 5000
    said = unknown_words(processor, question)
    assert said.startswith("The tokenizer does not know 'zqx0', 'zqx1', 'zqx2', 'zqx3', 'zqx4' and 96 more words;")
    assert len(said) < 200
    assert "zqx" in unknown_words(processor, "zqx zqx zqx")
    assert unknown_words(processor, "zqx zqx").count("zqx") == 1
    assert unknown_words(processor, "what colour is the star?") == ""
