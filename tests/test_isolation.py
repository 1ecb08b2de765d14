"""Calls, conversations and models keep out of each other's way, however the call is written."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vlmprune
from tests.support.grid import grid
from tests.support.planted import Planted, counts
from tests.support.reference import language_model
from tests.support.running import assert_near, generate, plan_of, reference, shared
from tests.support.tiny_families import FAMILIES, build, make_inputs, row
from vlmprune.runtime import prefill as forward

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("family", FAMILIES)
def test_positional_input_ids(family):
    model = shared(family)
    named = make_inputs(model)
    others = {name: value for name, value in named.items() if name != "input_ids"}
    with vlmprune.wrap(model, "random", keep=0.5) as pruned:
        positional = model(named["input_ids"], **others).logits
        assert sum(pruned.report.kept_tokens) < sum(counts(model, named))
        assert torch.equal(positional, model(**named).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_and_a_plain_forward_see_the_same_images(family):
    """`generate` runs the vision tower by itself; grids and choice are those of a plain forward all the same."""
    model = shared(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.5) as pruned:
        model.generate(**inputs, max_new_tokens=2)
        generated = pruned.report
        model(**inputs)
        direct = pruned.report
    assert [kept.tolist() for kept in generated.kept] == [kept.tolist() for kept in direct.kept]
    for one, other in zip(generated.images, direct.images, strict=True):
        assert [span.grid for span in one] == [span.grid for span in other]
    assert generated.layer_lengths == direct.layer_lengths
    assert generated.prefill_flops == direct.prefill_flops < direct.prefill_flops_full


@pytest.mark.parametrize("layer", [0, 2])
def test_two_conversations_in_turns(layer):
    """The state of a pruned prompt is its cache's: another prompt in between changes nothing."""
    model = shared("llava")
    inputs = make_inputs(model)
    step = torch.tensor([[20], [21], [22]])
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(step)], dim=1)
    with vlmprune.wrap(model, "random", keep=0.5, layer=layer), torch.no_grad():
        first = model(**inputs, use_cache=True).past_key_values
        alone = model(input_ids=step, attention_mask=mask, past_key_values=copy.deepcopy(first)).logits
        model(**row(inputs, 1), use_cache=True)
        again = model(input_ids=step, attention_mask=mask, past_key_values=first).logits
    assert torch.equal(again, alone)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_kept_tokens_turn_by_their_original_positions(family, monkeypatch):
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")

    def distance() -> float:
        with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
            logits, out = generate(model, inputs, steps=3)
        expected = reference(model, inputs, plan, 1, 3, out.sequences[:, -3:])
        return float((logits - expected).abs().max())

    def first_rows(self, stage, chosen, kwargs, hidden):
        cos, sin = kwargs["position_embeddings"]
        return cos[..., : hidden.shape[1], :], sin[..., : hidden.shape[1], :]

    assert distance() < 1e-4
    monkeypatch.setattr(forward.Prefill, "_cos_sin", first_rows)
    assert distance() > 1e-2


def test_the_probe_enters_and_leaves_the_table_of_kernels():
    model, other = shared("llava"), build("internvl")
    before = set(ALL_ATTENTION_FUNCTIONS.valid_keys())
    with vlmprune.wrap(model, "fastv", keep=0.5), vlmprune.wrap(other, "fastv", keep=0.5):
        model(**make_inputs(model))
        assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert set(ALL_ATTENTION_FUNCTIONS.valid_keys()) == before


@grid(family=["llava", "qwen3_vl", "gemma3", "paligemma", "mllama"], attn=["sdpa", "eager"])
def test_the_probe_changes_no_bit_of_the_attention_output(family, attn):
    model = shared(family, attn)
    inputs = make_inputs(model)
    outputs = []
    layer = language_model(model).layers[1]
    attention = layer.cross_attn if hasattr(layer, "cross_attn") else layer.self_attn
    handle = attention.register_forward_hook(lambda module, args, out: outputs.append(out[0].detach()))
    model(**inputs)
    with vlmprune.wrap(model, "fastv", keep=0.5, layer=2):
        model(**inputs)
    handle.remove()
    assert len(outputs) == 2
    assert torch.equal(outputs[0], outputs[1])


def test_a_text_prompt_after_an_image_prompt():
    model = shared("llava")
    text = make_inputs(model, images=(0, 0, 0))
    plain, _ = generate(model, text, steps=3)
    with vlmprune.wrap(model, "random", keep=0.5):
        generate(model, make_inputs(model), steps=3)
        assert_near(generate(model, text, steps=3)[0], plain)


@pytest.mark.parametrize(
    ("family", "bad"),
    [
        ("llava", vlmprune.Uniform(layer=99)),
        ("qwen2_vl", vlmprune.Uniform(positions="compact")),  # several position axes
        ("mllama", vlmprune.FastV(layer=1)),  # no cross-attention layer before it
    ],
)
def test_a_bad_second_wrap_leaves_the_first_in_place(family, bad):
    model = build(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "random", keep=0.5) as first:
        model(**inputs)
        kept = first.report.kept
        with pytest.raises(vlmprune.VlmpruneError):
            vlmprune.wrap(model, bad)
        assert first.active
        model(**inputs)
        assert all(torch.equal(a, b) for a, b in zip(first.report.kept, kept, strict=True))


def test_what_was_put_around_a_wrapped_forward_stays():
    """accelerate shadows `forward` too: taking ours off from under it leaves its own in place."""
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    model, plain = build("llava"), shared("llava")
    inputs = make_inputs(model)
    seen: list[str] = []

    class Counts(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            seen.append("forward")
            return args, kwargs

    pruned = vlmprune.wrap(model, "uniform", keep=0.3)
    short = model(**inputs).logits.shape[1]
    add_hook_to_module(model, Counts())
    with pruned.off():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert model(**inputs).logits.shape[1] == short
    pruned.unwrap()
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert len(seen) == 3
    remove_hook_from_module(model)
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    assert len(seen) == 3


@pytest.mark.parametrize("method", ["fastv", "sgl"])
def test_peft_calls_forward_itself(method):
    """Its tuners call `model.forward`, where hooks on the model do not run: a guide has to all the same."""
    peft = pytest.importorskip("peft")
    model = build("llava")
    inputs = make_inputs(model)
    made = vlmprune.SGL(guide=build("llava", seed=1), keep=0.4) if method == "sgl" else vlmprune.FastV(keep=0.4)
    with vlmprune.wrap(model, made):
        expected = model(**inputs, logits_to_keep=2).logits
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()
    with vlmprune.wrap(tuned, made):
        assert_near(tuned(**inputs, logits_to_keep=2).logits, expected)
