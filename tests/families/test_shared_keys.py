"""Gemma 3n and 4: layers that use the keys of earlier ones, inputs of each layer's own, several streams a token.

Of six layers the last two use the keys of layers 3 (sliding) and 2 (full): every place of a drop among them is tried.
"""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.support.generic import IMAGE, TOKENS, gemma, make_generic_inputs
from tests.support.generic.common import build_from, hand_over
from tests.support.grid import grid
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.planted import Planted

STEPS = 7
CONFIGS = {
    "gemma3n": gemma.gemma3n,
    "gemma4": gemma.gemma4,
    "gemma4 experts": gemma.gemma4_experts,
    # No published one shares keys and lets image tokens see each other; the code can.
    "gemma4 both ways": lambda **text: gemma.gemma4(use_bidirectional_attention="vision", **text),
    "gemma4_unified": lambda **text: gemma.gemma4_unified(num_kv_shared_layers=2, **text),
}
LAYERS = range(6)


def build(name, attn="sdpa", **text):
    config = CONFIGS[name](**text)
    model = build_from(config, attn=attn)
    hand_over(model, gemma.FORMS.get(config.model_type, "list"))
    return model


def forced(shape=(2, STEPS)):
    return torch.randint(10, 99, shape, generator=torch.Generator().manual_seed(1))


def assert_masked(model, inputs, layer, tokens, found, kept, exact=1e-5, **options):
    """Every step is near the masked run's, and far from the plain one's."""
    decoder = model.base_model.language_model.layers
    dropped = dropped_of(inputs["input_ids"] == IMAGE, kept)
    masked = masked_forced_logits(model, decoder, dict(inputs), dropped, layer, tokens, **options)
    plain = forced_logits(model, dict(inputs), tokens)
    bound = exact * max(1.0, float(masked.std()))
    assert float((found - masked).abs().max()) <= bound
    assert float((found - plain).abs().amax(dim=(0, 2)).min()) > 100 * bound  # the last layer sees everything


@grid(layer=LAYERS, name=list(CONFIGS), attn=["sdpa", "eager"], window=[8, 30])
def test_pruned_equals_masked_wherever_tokens_are_dropped(layer, name, attn, window):
    """Of prompts of 17 and 27 tokens: a window that they outgrow, and one that the steps do.

    In fp64 where transformers can, whose eager masks and experts have none: there, fp32 rounding reaches 1.05e-5 of
    the spread in one of sixty cells, and fp64 shows beside it that nothing else does.
    """
    model, fine = build(name, attn), attn == "sdpa" and name != "gemma4 experts"
    model = model.double() if fine else model
    for part in (model.config.get_text_config(), *(one.self_attn for one in model.base_model.language_model.layers)):
        if getattr(part, "sliding_window", None):
            part.sliding_window = window
    inputs, tokens = make_generic_inputs(model), forced()
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
        found, report = forced_logits(model, dict(inputs), tokens), pruned.report
    assert report.kept_tokens == [4, 8]
    assert_masked(model, inputs, layer, tokens, found, report.kept, exact=1e-6 if fine else 1.5e-5)


@grid(layer=LAYERS, name=["gemma4", "gemma3n"], attn=["eager", "sdpa"])
def test_without_padding_before(layer, name, attn):
    """The model makes no mask of full layers; what is left is of equal length, or ragged."""
    model = build(name, attn)
    whole, tokens = make_generic_inputs(model), forced()
    alone = {"input_ids": whole["input_ids"][1:], "pixel_values": whole["pixel_values"][1:]}
    if layer % 2:  # as many tokens of one image as of two, in texts of other lengths
        ids = alone["input_ids"][0].tolist()
        ids[1 + 1 + TOKENS :] = [20 + i for i in range(len(ids) - 2 - TOKENS)]
        alone["input_ids"] = torch.cat([torch.tensor([ids]), alone["input_ids"]])
        alone["pixel_values"] = whole["pixel_values"]
    alone["attention_mask"] = torch.ones_like(alone["input_ids"])
    tokens = tokens[: len(alone["input_ids"])]
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
        found, report = forced_logits(model, dict(alone), tokens), pruned.report
    assert_masked(model, alone, layer, tokens, found, report.kept)


@grid(layers=[(1, 3, 5), (0, 4), (2, 3)], name=["gemma4", "gemma3n"], attn=["sdpa", "eager"])
def test_several_drops(layers, name, attn):
    """Keys of one stage seen from a later one."""
    model = build(name, attn)
    inputs, tokens = make_generic_inputs(model), forced()
    plans = [[list(range(0, 9, 1 + n)), list(range(0, 18, 2 + n))] for n in range(len(layers))]
    plans = [[sorted(set(old).intersection(*(p[i] for p in plans[: n + 1]))) for i, old in enumerate(plan)]
             for n, plan in enumerate(plans)]  # fmt: skip

    class Stages(vlmprune.Pruner):
        def stage_layers(self, depth, layouts=None):
            return layers

        def select(self, prompt):
            now = plans[prompt.stage]
            before = plans[prompt.stage - 1] if prompt.stage else [range(9), range(18)]
            kept = [torch.tensor([list(old).index(one) for one in some]) for old, some in zip(before, now, strict=True)]
            return vlmprune.Selection(kept)

    with vlmprune.wrap(model, Stages(keep=1)):
        found = forced_logits(model, dict(inputs), tokens)
    visual = inputs["input_ids"] == IMAGE
    later = [(dropped_of(visual, plan), at) for plan, at in zip(plans[1:], layers[1:], strict=True)]
    assert_masked(model, inputs, layers[0], tokens, found, plans[0], more=later)


@pytest.mark.parametrize("name", ["gemma4", "gemma3n"])
def test_a_static_cache_and_none(name):
    model = build(name).double()
    inputs, tokens, plan = make_generic_inputs(model), forced(), ((0, 3, 4, 8), (1, 2, 9, 11, 15))
    for options in ({"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}):
        for layer in (0, 3, 5):
            with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
                found = forced_logits(model, {**inputs, **options}, tokens)
            assert_masked(model, inputs, layer, tokens, found, plan, exact=1e-6)


@pytest.mark.parametrize("name", ["gemma4", "gemma3n"])
def test_beams(name):
    """Each beam's rows are those of its prompt: the same logits as the answer alone."""
    model = build(name)
    inputs, plan = make_generic_inputs(model), ((0, 3, 4, 8), (1, 2, 9, 11, 15))
    for layer in (0, 3, 5):
        with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
            out = model.generate(
                **inputs, num_beams=3, max_new_tokens=STEPS, do_sample=False, output_scores=True,
                return_dict_in_generate=True, suppress_tokens=[IMAGE, IMAGE + 1],
            )  # fmt: skip
            tokens = out.sequences[:, -STEPS:]
            logits = forced_logits(model, dict(inputs), tokens)
        logs = logits.log_softmax(-1).gather(2, tokens[..., None]).sum(dim=(1, 2)) / STEPS
        assert torch.allclose(logs, out.sequences_scores, atol=1e-4)


def rows_run(model, run):
    """How many rows of the prompt the last layer was given."""
    seen = []
    hook = model.base_model.language_model.layers[-1].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[-2])
    )
    out = run()
    hook.remove()
    return seen[0], out


def test_rows_that_the_model_leaves_out_are_left_out():
    """Gemma 4 runs its last layers for the last row only; a drop before them leaves it at that."""
    model = build("gemma4")
    inputs, tokens = make_generic_inputs(model), forced((2, 2))
    assert rows_run(model, lambda: forced_logits(model, dict(inputs), tokens))[0] == 1
    for layer, expected in ((0, 1), (3, 1), (4, 17), (5, 17)):
        with vlmprune.wrap(model, vlmprune.Uniform(keep=0.4, layer=layer)) as pruned:
            rows, _ = rows_run(model, lambda: forced_logits(model, dict(inputs), tokens))
        assert rows == expected
        assert len(pruned.report.notes) == 2 * (layer > 3)
        if layer > 3:
            assert f"layers {layer} and later use the keys of earlier layers" in pruned.report.notes[0]
            assert "in layers 4 and later, where the model alone runs the last 1:" in pruned.report.notes[1]
        assert (pruned.report.prefill_flops > pruned.report.prefill_flops_full) == (layer > 3)
        assert pruned.report.kv_bytes < pruned.report.kv_bytes_full or layer > 2


@pytest.mark.parametrize("keep", [1, 3, 0])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_rows_asked_for(keep, side):
    """Padding behind a prompt stands for its last row, also where the model runs no others."""
    model = build("gemma4")
    inputs = make_generic_inputs(model)
    plan = ((0, 3, 4, 8), (1, 2, 9, 11, 15))
    if side == "right":
        inputs = dict(inputs)
        gap = int((inputs["attention_mask"][0] == 0).sum())
        for name in ("input_ids", "attention_mask"):
            inputs[name] = inputs[name].clone()
            inputs[name][0] = inputs[name][0].roll(-gap)
    with vlmprune.wrap(model, Planted(plan=plan, layer=2)), torch.no_grad():
        every = model(**inputs).logits
        some = model(**inputs, logits_to_keep=keep).logits
        rows = model(**inputs).rows
    whole = [every[i, -len(own) :] for i, own in enumerate(rows)]
    for i, own in enumerate(whole):
        if keep == 1:
            assert torch.allclose(some[i, -1], own[-1], atol=2e-5)
        elif keep == 3 and side == "left":
            assert torch.allclose(some[i], own[-3:], atol=2e-5)
        elif keep == 3 and i == 0:  # three columns of padding
            assert torch.allclose(some[i], own[-1:].expand(3, -1), atol=2e-5)
        elif keep == 0:
            assert torch.equal(some[i], every[i])


def test_the_base_model_alone():
    model = build("gemma4")
    inputs = dict(make_generic_inputs(model))
    for layer, rows in ((2, 1), (5, 10)):
        with vlmprune.wrap(model, Planted(plan=((0,), (1,)), layer=layer)), torch.no_grad():
            some = model.model(**inputs, logits_to_keep=1).last_hidden_state
            every = model.model(**inputs).last_hidden_state
        assert (some.shape[1], every.shape[1]) == (rows, 10)
        assert torch.allclose(some, every[:, -rows:], atol=2e-5)


@grid(layer=[0, 3, 5], name=["gemma4", "gemma3n"], padded=[True, False])
def test_a_later_turn(layer, name, padded):
    """Several tokens at once on the cache of a pruned prompt, all rows or the last: as one after the other."""
    model, tokens = build(name), forced()
    inputs = dict(make_generic_inputs(model))
    if not padded:
        inputs = {"input_ids": inputs["input_ids"][1:], "pixel_values": inputs["pixel_values"][1:]}
        inputs["attention_mask"], tokens = torch.ones_like(inputs["input_ids"]), tokens[1:]
    plan = ((0, 3, 4, 8), (1, 2, 9, 11, 15))[-len(tokens) :]
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)), torch.no_grad():
        expected = forced_logits(model, inputs, tokens)
        for keep in (0, 1):
            cache = model(**inputs, use_cache=True, logits_to_keep=1).cache
            mask = torch.cat([inputs["attention_mask"], torch.ones_like(tokens[:, :-1])], dim=1)
            found = model(input_ids=tokens[:, :-1], attention_mask=mask, cache=cache, logits_to_keep=keep).logits
            assert torch.allclose(found, expected[:, -found.shape[1] :], atol=2e-5)
