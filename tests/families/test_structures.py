"""Types whose structure differs: a model that is its own base model, features added before a layer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

import vlmprune
from tests.support.generic import IMAGE, build_generic, make_generic_inputs
from tests.support.generic.common import build_from, hand_over
from tests.support.generic.indexed import minimax_m3_vl
from tests.support.grid import few
from tests.support.masked_generate import dropped_of, forced_logits, hidden_from, masked_forced_logits
from vlmprune.families.generic import decoder_of
from vlmprune.flow.select import Selection
from vlmprune.methods.base import Pruner, PruningContext


@dataclass(frozen=True)
class Halves(Pruner):
    """Before layers 1 and 3 every other visual token goes."""

    def stage_layers(self, layers: int, layouts: object = None) -> tuple[int, ...]:
        return (1, 3)

    def select(self, prompt: PruningContext) -> Selection:
        return Selection([torch.arange(0, layout.count, 2) for layout in prompt.layouts])


def masked_forward(model, inputs, dropped_at):
    """Logits [B, S, vocabulary] of one forward, image tokens hidden by several layers.

    `dropped_at`: by layer, bool [B, S], what is hidden from it on.
    """
    layers, length = decoder_of(model).layers, inputs["input_ids"].shape[1]
    hooks = []
    for i, layer in enumerate(layers):
        dropped = next((gone for first, gone in reversed(dropped_at.items()) if i >= first), None)
        if dropped is None:
            continue

        def hide(module, args, kwargs, dropped=dropped):
            mask = hidden_from(kwargs.get("attention_mask"), dropped, length, length)
            return args, kwargs | {"attention_mask": mask}

        hooks.append(layer.register_forward_pre_hook(hide, with_kwargs=True))
    try:
        return model(**inputs).logits
    finally:
        for hook in hooks:
            hook.remove()


def test_a_model_without_a_base_gives_the_rows_that_were_asked_for():
    """Its own forward holds the head, so rows are chosen before it; only theirs get logits."""
    model = build_generic("llama4")
    assert model.base_model is model
    inputs = dict(make_generic_inputs(model))
    rows = []
    head = model.get_output_embeddings()
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=1)) as pruned, torch.no_grad():
        hook = head.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
        whole = model(**inputs)
        kept = pruned.report.kept
        last = model(**inputs, logits_to_keep=2)
        text = model(**inputs, logits_to_keep=torch.tensor([-1, -3]))
        plain = model(input_ids=torch.tensor([[1, 20, 30]]), logits_to_keep=1)
        hook.remove()
    want = masked_forward(model, inputs, {1: dropped_of(inputs["input_ids"] == IMAGE, kept)}).detach()
    assert rows == [max(map(len, whole.rows)), 2, 2, 1]
    for i, own in enumerate(whole.rows):
        assert torch.allclose(whole.logits[i, -len(own) :], want[i, own], atol=1e-5)
    assert torch.allclose(last.logits, want[:, -2:], atol=1e-5)
    assert torch.allclose(text.logits, want[:, [-1, -3]], atol=1e-5)
    assert plain.logits.shape[1] == 1


def test_its_loss_is_that_of_the_kept_rows():
    model = build_generic("llama4")
    inputs = dict(make_generic_inputs(model))
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100)
    labels[:, :-3] = -100
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4)) as pruned, torch.no_grad():
        loss = model(**inputs, labels=labels).loss
        dropped = dropped_of(inputs["input_ids"] == IMAGE, pruned.report.kept)
    logits = masked_forward(model, inputs, {0: dropped}).detach()
    want = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert abs(float(loss - want)) <= 1e-5


def test_nothing_is_left_on_a_model_without_a_base():
    model = build_generic("llama4")
    before = {name: dict(part.__dict__) for name, part in model.named_modules()}
    with vlmprune.wrap(model, "fastv", keep=0.4), torch.no_grad():
        model.generate(**make_generic_inputs(model), max_new_tokens=2)
    for name, part in model.named_modules():
        own = {key: value for key, value in part.__dict__.items() if not key.endswith("_hooks_with_kwargs")}
        assert own.keys() <= before[name].keys() and "forward" not in own, name


@pytest.mark.parametrize("text_only", [True, False])
def test_what_transformers_forgot_is_said(monkeypatch, text_only):
    model = build_generic("llama4")
    monkeypatch.delattr(MoeCausalLMOutputWithPast, "image_outputs")
    inputs = {"input_ids": torch.tensor([[1, 20, 30]])} if text_only else dict(make_generic_inputs(model))
    with pytest.raises(AttributeError, match="image_outputs"):
        model(**inputs)
    with (
        vlmprune.wrap(model, "uniform"),
        pytest.raises(vlmprune.VlmpruneError, match=r"fails without vlmprune too, .* set .*image_outputs = None"),
    ):
        model(**inputs)


@pytest.mark.parametrize("model_type", ["granite4_vision", "qwen3_vl_moe"])
def test_features_are_added_to_what_several_stages_have_left(model_type):
    """Granite 4 Vision adds before layers 0, 2, 3 and 5: before, between, at and behind the two stages."""
    model = build_generic(model_type)
    inputs = dict(make_generic_inputs(model))
    with vlmprune.wrap(model, Halves()) as pruned, torch.no_grad():
        out = model(**inputs)
        kept = pruned.report.kept
    halves = [torch.arange(0, len(own) * 4, 2) for own in kept]
    dropped = {1: dropped_of(inputs["input_ids"] == IMAGE, halves), 3: dropped_of(inputs["input_ids"] == IMAGE, kept)}
    assert [len(own) for own in kept] == [3, 5]
    want = masked_forward(model, inputs, dropped).detach()
    for i, own in enumerate(out.rows):
        assert torch.allclose(out.logits[i, -len(own) :], want[i, own], atol=2e-5)


@pytest.mark.parametrize("block", few([4, 128], 2))
def test_blocks_of_keys_are_counted_among_those_that_are_left(block):
    """MiniMax M3 selects blocks of keys by position ids, and by them alone knows without a mask what lies ahead.

    All blocks are in the budget. A prompt without padding has no mask.
    """
    model = build_from(minimax_m3_vl(block))
    hand_over(model)
    inputs = {name: value[1:] for name, value in make_generic_inputs(model).items()}
    tokens = torch.randint(10, 99, (1, 7), generator=torch.Generator().manual_seed(1))
    for layer in (0, 1, 2):
        with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
            found = forced_logits(model, dict(inputs), tokens)
            dropped = dropped_of(inputs["input_ids"] == IMAGE, pruned.report.kept)
        want = masked_forced_logits(model, decoder_of(model).layers, dict(inputs), dropped, layer, tokens)
        assert float((found - want).abs().max()) <= 1e-5 * max(1.0, float(want.std())), layer


def test_an_inner_generate_and_a_bare_forward_see_the_same_prompt():
    """BLIP-2's `generate` hands embeddings to its language model's, its forward to the language model's forward."""
    model = build_generic("blip-2")
    inputs = dict(make_generic_inputs(model))
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=1)) as pruned, torch.no_grad():
        out = model(**inputs, logits_to_keep=2)
        forward = pruned.report
        made = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
        generated = pruned.report
        text = model.generate(inputs["pixel_values"][:2], max_new_tokens=2)  # no ids: it makes its own
        alone = pruned.report
    dropped = dropped_of(inputs["input_ids"] == IMAGE, forward.kept)
    want = masked_forward(model, inputs, {1: dropped}).detach()
    assert torch.allclose(out.logits, want[:, -2:], atol=1e-5)
    assert torch.allclose(made.logits[0], want[:, -1], atol=1e-5)
    assert generated.kept_tokens == forward.kept_tokens == [4, 8] and alone.kept_tokens == [4, 4]
    assert len(text) == 2
    assert "forward" not in vars(model.language_model) and "generate" not in vars(model.language_model)


@pytest.mark.parametrize("model_type", ["blip-2", "instructblip"])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_an_inner_generate_repeats_rows(model_type, options):
    """Beams and return sequences come as embeddings; the tokens of each row are those of its prompt."""
    model = build_generic(model_type)
    inputs = dict(make_generic_inputs(model))
    options = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True, **options}
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=1)) as pruned, torch.no_grad():
        made = model.generate(**inputs, **options)
        report = pruned.report
        want = model.generate(**inputs, max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]
    assert float((made.logits[0] - want.repeat_interleave(2, 0)).abs().max()) <= 1e-5 * max(1.0, float(want.std()))
    assert report.kept_tokens == [4, 8] and [len(spans) for spans in report.images] == [1, 2]
