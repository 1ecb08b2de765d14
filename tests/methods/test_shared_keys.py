"""Methods that read or change attention where layers use the keys of earlier ones (Gemma 3n and 4).

Their references are eager attention maps of the plain model, read in loops.
"""

from __future__ import annotations

import pytest
import torch

import vlmprune

pytest.importorskip("transformers.models.cohere_compass", reason="the tiny models of all types want them all")
# isort: split
from tests.families.test_shared_keys import STEPS, assert_masked, build, forced
from tests.support.generic import IMAGE, make_generic_inputs
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.planted import Planted
from tests.support.sinks import PLANTED, Seen, act_twin, var_twin
from tests.support.tiny_families import BOS
from vlmprune.attention.masks import sources_of
from vlmprune.guide.runner import Guide
from vlmprune.runtime.fit import check_lent

NAMES = ["gemma4", "gemma3n"]


def maps_of(model, inputs, tokens=None):
    """Eager attention maps [B, H, T, T] of every layer over the prompt and tokens behind it."""
    given = dict(inputs)
    if tokens is not None:
        given["input_ids"] = torch.cat([given["input_ids"], tokens], dim=1)
        given["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(tokens)], dim=1)
    with torch.no_grad():
        return model(**given, output_attentions=True, use_cache=False).attentions


def best(scores, slots, count):
    """The `count` best of visual tokens, in order."""
    own = [float(scores[slot]) for slot in slots]
    return sorted(sorted(range(len(own)), key=lambda v: -own[v])[:count])


@pytest.mark.parametrize("layer", [1, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_fastv_reads_layers_with_keys_of_another(name, layer):
    """Layer 4, which is read for a drop before 5, uses the keys of layer 3."""
    model, eager = build(name), build(name, "eager")
    inputs, tokens = make_generic_inputs(model), forced()
    read = maps_of(eager, inputs)[layer - 1].mean(dim=1)[:, -1]
    with vlmprune.wrap(model, vlmprune.FastV(keep=4, layer=layer)) as pruned:
        found, kept = forced_logits(model, dict(inputs), tokens), pruned.report.kept
    for ids, scores, own, images in zip(inputs["input_ids"], read, kept, (1, 2), strict=True):
        slots = (ids == IMAGE).nonzero()[:, 0].tolist()
        expected = [9 * n + one for n in range(images) for one in best(scores, slots[9 * n : 9 * n + 9], 4)]
        assert own.tolist() == expected
    assert_masked(model, inputs, layer, tokens, found, kept)


def test_a_later_stage_reads_keys_of_before_an_earlier_one():
    """After a drop before layer 3, the last layer's columns are all there; what it attends to is read of those left."""

    class Late(vlmprune.Pruner):
        reads_attention = reads_keys = True

        def stage_layers(self, depth, layouts=None):
            return (3, 6)

        def select(self, prompt):
            seen.append((prompt.attention, prompt.keys, prompt.valid))
            return vlmprune.Selection([torch.arange(0, layout.count, 2) for layout in prompt.layouts])

    seen = []
    model, eager = (build("gemma4", attn, num_hidden_layers=7, layer_types=LONG_KINDS) for attn in ("sdpa", "eager"))
    inputs = make_generic_inputs(model)
    with vlmprune.wrap(model, Late(keep=1)):
        model(**inputs)
        first = [list(range(0, 9, 2)), list(range(0, 18, 2))]
    (_, (attention, keys, valid)) = seen
    assert attention.shape == valid.shape and keys.shape[2] == valid.shape[1]
    # The same layer of the masked model.
    layers, maps = eager.base_model.language_model.layers, {}
    note = layers[5].self_attn.register_forward_hook(lambda *given: maps.update(first=maps.get("first", given[2][1])))
    dropped, whole = dropped_of(inputs["input_ids"] == IMAGE, first), {**inputs, "output_attentions": True}
    masked_forced_logits(eager, layers, whole, dropped, 3, forced((2, 1)))
    note.remove()
    rows = inputs["input_ids"].shape[1]
    for b in range(2):
        left = (~dropped[b] & inputs["attention_mask"][b].bool()).nonzero()[:, 0]
        expected = maps["first"][b].mean(dim=0)[rows - 1, left]
        assert torch.allclose(attention[b, valid[b]], expected, atol=1e-5)


LONG_KINDS = [*["sliding_attention", "sliding_attention", "full_attention"] * 2, "full_attention"]


def planted(attn):
    """Gemma 4 in which BOS and some other tokens spike."""
    model = build("gemma4", attn)
    text = model.base_model.language_model

    def spike(module, args):
        hidden = args[0].clone()
        chosen = (hidden[..., 0] > 4.0) | (torch.sin(5 * hidden[..., 1]) > 0.6)
        for dim in PLANTED:
            hidden[..., dim] = torch.where(chosen, torch.full_like(hidden[..., dim], 40.0), hidden[..., dim])
        return (hidden, *args[1:])

    with torch.no_grad():
        text.embed_tokens.weight[BOS, 0] = 9.0 / text.embed_tokens.scalar_embed_scale
    text.layers[0].register_forward_pre_hook(spike)
    return model


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["var", "act"])
def test_edited_attention_equals_the_naive_twin(method):
    """Layer 4 is edited over the keys of layer 3, in the prompt and in steps past the window."""
    model, seen = planted("sdpa"), Seen()
    inputs, tokens = make_generic_inputs(model), forced()
    plain = forced_logits(model, dict(inputs), tokens)
    with vlmprune.wrap(model, vlmprune.VAR() if method == "var" else vlmprune.ACT(threshold=0.08)):
        found = forced_logits(model, dict(inputs), tokens)
    if method == "var":
        twin = var_twin(planted("eager"), inputs, seen=seen)
    else:
        twin = act_twin(planted("eager"), inputs, threshold=0.08, seen=seen)
    given = dict(inputs)
    given["input_ids"] = torch.cat([inputs["input_ids"], tokens[:, :-1]], dim=1)
    given["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens[:, :-1])], dim=1)
    # The twin leaves one forward of the model out, which makes what its language model gets.
    with twin.on(), torch.no_grad():
        twin.preparing = False
        twin.model._forward_pre_hooks.clear()
        expected = twin.model(**given, use_cache=False).logits[:, -STEPS:]
    assert seen[4, "open" if method == "var" else "sinks"] > 3
    assert float((found - plain).abs().max()) > 1e-2
    assert float((found - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.std()))


def test_var_beside_a_drop_behind_the_keys_is_refused():
    model = build("gemma4")
    with pytest.raises(vlmprune.UnsupportedModelError, match="'var' cannot edit layer 4, which attends to the keys of"):
        vlmprune.wrap(model, [Planted(plan=((0,), (1,)), layer=4), vlmprune.VAR()])
    vlmprune.wrap(model, [Planted(plan=((0,), (1,)), layer=2), vlmprune.VAR()]).unwrap()


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_one_stream_or_no_shared_keys_says_so(name):
    model = build(name)
    if name == "gemma3n":
        inputs = make_generic_inputs(model)
        with (
            vlmprune.wrap(model, vlmprune.SparseVLM(keep=0.4, layer=2)),
            pytest.raises(vlmprune.VlmpruneError, match="of which this language model keeps several a token"),
        ):
            model(**inputs)
    sources = sources_of([layer.self_attn for layer in model.base_model.language_model.layers])
    assert sources == [0, 1, 2, 3, 3, 2]
    with pytest.raises(vlmprune.UnsupportedModelError, match="positions='compact' is not supported where"):
        check_lent(vlmprune.Uniform(keep=0.4, positions="compact"), [], sources, (0,))  # of a declared family


@pytest.mark.parametrize("name", NAMES)
def test_sgl_ranks_by_a_guide_with_shared_keys(name):
    """Importance is the attention of text rows in all layers, heads and steps; a model of the same kind follows it."""
    guide, eager = build(name), build(name, "eager")
    inputs = make_generic_inputs(guide)
    found = Guide(guide).answer(inputs, {"max_new_tokens": 5, "suppress_tokens": [IMAGE]}, whole=True)
    tokens = torch.stack(found.answers)
    maps = maps_of(eager, inputs, tokens[:, :-1])
    for b, ids in enumerate(inputs["input_ids"]):
        slots = (ids == IMAGE).nonzero()[:, 0]
        expected = torch.zeros(len(slots))
        for layer in maps:
            for head in layer[b]:
                for row in range(int(slots[-1]) + 1, head.shape[0]):
                    expected += head[row, slots]
        assert torch.allclose(found.importance[b], expected, rtol=1e-4, atol=1e-4)
    model = build(name)
    forced_tokens = forced()
    for layer in (0, 3):
        with vlmprune.wrap(model, vlmprune.SGL(keep=4, layer=layer, guide=guide)) as pruned:
            logits, kept = forced_logits(model, dict(inputs), forced_tokens), pruned.report.kept
        assert_masked(model, inputs, layer, forced_tokens, logits, kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_halved_guide(name):
    """Its own drop lies before its last layers, which still hold all keys; what is dropped gets nothing there."""
    model, guide = build(name), build(name)
    inputs = make_generic_inputs(guide)
    whole = Guide(guide, vlmprune.SGL(guide=model, guide_keep=18)).rank(inputs)
    half = Guide(guide, vlmprune.SGL(guide=model, guide_keep=3)).rank(inputs)
    for all_of, some in zip(whole.importance, half.importance, strict=True):
        assert len(all_of) == len(some) and bool(torch.isfinite(some).all())
        assert int((some < all_of - 1e-4).sum()) >= len(all_of) // 2


@pytest.mark.parametrize("name", NAMES)
def test_sinks_are_found(name):
    """The residual stream of several is the first: norms entering every layer and leaving the last."""
    model = build(name)
    inputs, seen = make_generic_inputs(model), []
    layers = model.base_model.language_model.layers
    notes = [one.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for one in layers]
    notes.append(layers[-1].register_forward_hook(lambda module, args, output: seen.append(output)))
    with torch.no_grad():
        model(**inputs)
    for note in notes:
        note.remove()
    first = int(inputs["attention_mask"][0].argmax())
    states = torch.stack([states[0] if states.dim() == 4 else states for states in seen])[:, 0, first]
    sample = vlmprune.find_sinks(model, **inputs).samples[0]
    assert sample.primary == 0
    assert torch.allclose(sample.norms, states.norm(dim=-1), rtol=1e-4)


def test_an_answer_of_the_guide_alone_is_reported_like_the_model_s():
    """What the whole model would have cost does not depend on who answered."""
    model, guide = build("gemma4"), build("gemma4")
    inputs, options = make_generic_inputs(model), {"max_new_tokens": 3, "suppress_tokens": [IMAGE], "do_sample": False}
    full = []
    for exit_at in (0.0, 1.0):
        with vlmprune.wrap(model, vlmprune.SGL(keep=4, layer=2, guide=guide, exit_at=exit_at)) as pruned:
            model.generate(**inputs, **options)
            full.append((pruned.report.exited, pruned.report.prefill_flops_full, pruned.report.kv_bytes_full))
    assert [exited for exited, *_ in full] == [[True, True], [False, False]]
    assert full[0][1:] == full[1][1:]
