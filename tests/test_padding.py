"""Padding on either side or both changes nothing: what is kept, edited, measured, and said next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.planted import Planted
from tests.support.running import assert_near, generate, plan_of, shared
from tests.support.sinks import shared_planted
from tests.support.tiny_families import FAMILIES, Inputs, build, make_inputs, padded, row
from tests.test_last_token import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LONG = (12, 17, 14)


def real_logits(model: Any, inputs: Inputs) -> list[Tensor]:
    """Logits of every sample's kept rows."""
    with torch.no_grad():
        out = model(**inputs)
    return [out.logits[i, -len(rows) :][inputs["attention_mask"][i, rows].bool()] for i, rows in enumerate(out.rows)]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_the_same(name):
    model = shared("llava")
    left = make_inputs(model)
    with vlmprune.wrap(model, METHODS[name]) as pruned:
        expected, kept = real_logits(model, left), pruned.report.kept
        found = real_logits(model, padded(left, "both"))
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, kept, strict=True))
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mllama"])
def test_fastv_in_every_family(family):
    """Gemma 3's windows count padding on the left as much as on the right, of which no row sees any."""
    model = shared(family)
    left = make_inputs(model)
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4)) as pruned:
        expected, kept = real_logits(model, left), pruned.report.kept
        found = real_logits(model, padded(left, "right"))
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, kept, strict=True))
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("method", [vlmprune.VAR(), vlmprune.ACT(threshold=0.08)])
@pytest.mark.parametrize("pruner", [None, vlmprune.Uniform(keep=0.5, layer=3)])
def test_edits_of_attention(method, pruner):
    model = shared_planted("llava")
    left = make_inputs(model, text_lengths=LONG)
    plain = real_logits_unwrapped(model, left)
    with vlmprune.wrap(model, [pruner, method] if pruner else method):
        expected = real_logits(model, left)
        for side in ("right", "both"):
            for a, b in zip(real_logits(model, padded(left, side)), expected, strict=True):
                assert_near(a, b)
    if pruner is None:
        assert max(float((a - b).abs().max()) for a, b in zip(plain, expected, strict=True)) > 1e-2


def real_logits_unwrapped(model: Any, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        logits = model(**inputs).logits
    return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]


def test_sinks_that_are_found():
    model = shared_planted("llava")
    left = make_inputs(model, text_lengths=LONG)
    one, two = vlmprune.find_sinks(model, **left), vlmprune.find_sinks(model, **padded(left, "right"))
    for a, b in zip(one.samples, two.samples, strict=True):
        assert a.primary == b.primary
        assert torch.equal(a.visual, b.visual)
        assert torch.equal(a.sinks, b.sinks)
        assert torch.equal(a.secondary, b.secondary) if isinstance(a.secondary, Tensor) else a.secondary == b.secondary
        assert_near(b.phi, a.phi)
        assert_near(b.image_attention, a.image_attention)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "internvl"])
def test_generation_after_padding_on_the_right(family):
    """Unpruned, transformers would read the first token from padding; kept rows stand on the right.

    Where it then puts the tokens after the first is its own affair, and it warns.
    """
    model = shared(family)
    left = make_inputs(model)
    plan = plan_of(model, left, "ragged")
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
        expected, _ = generate(model, left, steps=1)
        found, _ = generate(model, padded(left, "right"), steps=1)
    assert_near(found, expected)


def test_a_guide_under_padding_on_the_right():
    model, guide = shared("llava"), build("llava", seed=1)
    left = make_inputs(model)
    with vlmprune.wrap(model, vlmprune.SGL(guide=guide, keep=0.4)) as pruned:
        expected, kept = real_logits(model, left), pruned.report.kept
        found = real_logits(model, padded(left, "right"))
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, kept, strict=True))
    for a, b in zip(found, expected, strict=True):
        assert_near(a, b)


def test_answers_of_different_lengths_are_checked_each_by_its_own_rows():
    """A short answer beside a long one: the long one's rows reach into the short one's dropped tokens."""
    model, guide = shared("llava"), build("llava", seed=1)
    inputs = make_inputs(model, text_lengths=(3, 9, 4))
    with vlmprune.wrap(model, vlmprune.SGL(guide=guide, keep=0.4)) as pruned:
        model.generate(**inputs, max_new_tokens=12)
        together = pruned.report.consistency
        for i in range(3):
            model.generate(**row(inputs, i), max_new_tokens=12)
            assert pruned.report.consistency[0] == pytest.approx(together[i], rel=1e-3)
