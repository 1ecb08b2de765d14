"""What users do with types that nothing is declared about: methods that edit attention, guides, counts of FLOPs."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

import vlmprune
from tests.support.generic import build_generic, make_generic_inputs
from vlmprune.families.generic import decoder_of

SHORT = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("method", ["var", "act"])
@pytest.mark.parametrize("model_type", ["chameleon", "dots3_note", "step3p7"])
def test_editing_methods_run(model_type, method):
    """VAR seeks sink dimensions in Chameleon's base; heads differ by layer in Dots3 and Step 3.7."""
    model = build_generic(model_type)
    with vlmprune.wrap(model, method) as wrapped:
        out = model.generate(**make_generic_inputs(model), **SHORT)
        assert wrapped.report.kept_tokens == [9, 18]
    assert out.shape[0] == 2


def test_heads_are_counted_by_layer():
    model = build_generic("dots3_note")
    heads = [layer.self_attn.num_heads for layer in decoder_of(model).layers]
    assert len(set(heads)) > 1
    few = heads.index(min(heads), 2)
    with pytest.raises(vlmprune.VlmpruneError, match=f"heads 0 to {min(heads) - 1}"):
        vlmprune.wrap(model, vlmprune.ACT(heads=[(few, min(heads))]))


def test_a_guide_whose_experts_depend_on_the_kind_of_token():
    """Its own answer is checked with the answer's tokens behind the prompt, which are text."""
    model, guide = build_generic("ernie4_5_vl_moe"), build_generic("ernie4_5_vl_moe", seed=1)
    with vlmprune.wrap(model, vlmprune.SGL(guide, keep=0.4, exit_at=1.0)) as pruned:
        model.generate(**make_generic_inputs(model), **SHORT)
    assert pruned.report.kept_tokens == [4, 8]


def test_experts_for_text_and_others_for_images_are_counted_once():
    """Every row but the head's goes through the experts of its kind; attention counts its causal half only."""
    model = build_generic("ernie4_5_vl_moe")
    text = decoder_of(model)
    text.config._experts_implementation = "eager"  # other kernels are not counted by torch
    inputs = {name: value[1:] for name, value in make_generic_inputs(model).items()}
    with vlmprune.wrap(model, vlmprune.Uniform(keep=1.0)) as pruned:
        model(**inputs)
        said = pruned.report.prefill_flops
    counter, made = FlopCounterMode(display=False), []
    text.layers[0].register_forward_pre_hook(lambda *_: made.append(counter.__enter__()))
    text.register_forward_hook(lambda *_: made.append(counter.__exit__(None, None, None)))
    model(**inputs)
    assert said / counter.get_total_flops() == pytest.approx(1.0, abs=0.12)
