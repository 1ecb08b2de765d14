"""The tests' own tools must be right first: tiny models that react to pruning, a reference that equals the model."""

from __future__ import annotations

import pytest
import torch

from tests.support.grid import grid, rows
from tests.support.reference import language_model, masked_logits, visual_slots
from tests.support.tiny_families import FAMILIES, build, make_inputs, row

STEPS = 8


def _generate(model, inputs, **options):
    out = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )
    return torch.stack(out.logits, dim=1), out.sequences[:, -STEPS:]


@grid(family=FAMILIES, attn=["sdpa", "eager"], images=[(1, 1, 1), (2, 1, 1)])
def test_reference_with_everything_kept_is_the_model(family, attn, images):
    """The hand-written masks are those of the architecture: cached greedy decoding gives the same logits."""
    model = build(family, attn=attn)
    inputs = make_inputs(model, images=images)
    everything = [range(len(slots)) for slots in visual_slots(model, inputs)]
    logits, tokens = _generate(model, inputs)
    naive = masked_logits(model, inputs, everything, layer=0, steps=STEPS)
    torch.testing.assert_close(naive, logits, rtol=0, atol=1e-5)
    given = masked_logits(model, inputs, everything, layer=0, steps=STEPS, tokens=tokens)
    torch.testing.assert_close(given, naive, rtol=0, atol=1e-5)


@grid(family=FAMILIES, layer=[0, 1, 2])
def test_masking_half_the_visual_tokens_moves_the_logits(family, layer):
    """A tiny model whose logits did not react would let every pruning bug through."""
    model = build(family)
    inputs = make_inputs(model)
    slots = visual_slots(model, inputs)
    _, tokens = _generate(model, inputs)
    full = masked_logits(model, inputs, [range(len(s)) for s in slots], layer, STEPS, tokens)
    half = masked_logits(model, inputs, [range(0, len(s), 2) for s in slots], layer, STEPS, tokens)
    moved = (full - half).abs().amax(dim=-1)  # [B, steps]
    assert moved.min() > 1e-2
    assert moved.max() > 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_row_is_the_sample_alone(family):
    model = build(family)
    inputs = make_inputs(model)
    batched, _ = _generate(model, inputs)
    for i in range(3):
        alone = row(inputs, i)
        assert alone["attention_mask"].all()
        torch.testing.assert_close(_generate(model, alone)[0][0], batched[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_what_makes_them_hard(family):
    model = build(family)
    text = model.config.get_text_config()
    assert text.num_key_value_heads < text.num_attention_heads
    visual = [len(slots) for slots in visual_slots(model, make_inputs(model))]
    if family not in ("llava", "gemma3", "paligemma"):  # these have one size of image
        assert len(set(visual)) > 1
    if family == "gemma3":
        assert set(text.layer_types) == {"sliding_attention", "full_attention"}
        assert text.sliding_window < min(make_inputs(model)["attention_mask"].sum(-1))
    if family == "mllama":
        gates = [layer.cross_attn_attn_gate for layer in language_model(model).layers if hasattr(layer, "cross_attn")]
        assert len(gates) >= 2
        assert all(gate.abs() > 0.5 for gate in gates)


def test_the_short_grid_has_every_value_and_each_of_the_first_axis_once():
    families, attn, layers = range(12), ["sdpa", "eager"], [0, 1, 2]
    short = rows([families, attn, layers])
    assert [one[0] for one in short] == list(families)
    assert {one[1:] for one in short} == {(a, layer) for a in attn for layer in layers}
    assert {one[1] for one in rows([range(2), "abcde", [0, 1]])} == set("abcde")


def test_deepstack_moves_the_logits():
    model = build("qwen3_vl")
    inputs = make_inputs(model)
    assert len(model.config.vision_config.deepstack_visual_indexes) >= 2
    before = model(**inputs).logits
    with torch.no_grad():
        for merger in model.model.visual.deepstack_merger_list:
            for parameter in merger.parameters():
                parameter.zero_()
    assert (model(**inputs).logits - before).abs().max() > 0.1
