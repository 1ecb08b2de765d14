"""Adaptive budgets: how many tokens stay follows from the scores; against plain loops and the masked model."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.support.grid import grid
from tests.support.reference import masked_logits, visual_slots
from tests.support.running import assert_near, generate, shared
from tests.support.tiny_families import FAMILIES, build, make_inputs, row
from vlmprune import VlmpruneError

STEPS, LAYER = 4, 2


def wanted(scores: list[float], top_p: float, floor: int, most: int) -> list[int]:
    """The best tokens, one after the other until they hold enough."""
    best = sorted(range(len(scores)), key=lambda j: -scores[j])
    kept: list[int] = []
    while len(kept) < floor or (sum(scores[j] for j in kept) < top_p * sum(scores) and len(kept) < most):
        kept.append(best[len(kept)])
    return sorted(kept[:most])


@grid(family=FAMILIES, attn=["sdpa", "eager"], bounds=[(1, 1.0), (2, 1.0), (1, 0.5)])
def test_fastv_keeps_what_holds_enough_attention(family, attn, bounds):
    floor, keep = bounds
    eager = shared(family, "eager")
    inputs = make_inputs(eager)
    with torch.no_grad():
        attention = eager(**inputs, output_attentions=True, use_cache=False).attentions[LAYER - 1]
    plan = []
    for i, slots in enumerate(visual_slots(eager, inputs)):
        received = attention[i, :, -1].double().mean(dim=0)[slots].tolist()
        plan.append(torch.tensor(wanted(received, 0.6, floor, max(1, int(keep * len(received) + 0.5)))))
    model = shared(family, attn)
    with vlmprune.wrap(model, vlmprune.FastV(keep=keep, layer=LAYER, top_p=0.6, floor=floor)) as pruned:
        logits, out = generate(model, inputs, steps=STEPS)
        report = pruned.report
        lone, _ = generate(model, row(inputs, 1), steps=STEPS)
        assert torch.equal(pruned.report.kept[0], plan[1])
    assert [kept.tolist() for kept in report.kept] == [kept.tolist() for kept in plan]
    assert_near(logits, masked_logits(model, inputs, plan, LAYER, STEPS, out.sequences[:, -STEPS:]))
    assert_near(lone[0], logits[1])


@pytest.mark.parametrize("diversity", [None, 1.0])
def test_a_guides_importance_says_how_many(diversity):
    model, small = build("llava"), build("llava", layers=2)
    inputs = make_inputs(model)
    kept = {}
    for top_p in (0.0, 0.3, 0.7, 1.0):
        with vlmprune.wrap(model, vlmprune.SGL(small, keep=1.0, layer=0, top_p=top_p, diversity=diversity)) as pruned:
            logits, out = generate(model, inputs, steps=STEPS)
            kept[top_p] = pruned.report.kept_tokens
            plan = pruned.report.kept
        assert_near(logits, masked_logits(model, inputs, plan, 0, STEPS, out.sequences[:, -STEPS:]))
    assert kept[0.0] == [1, 1, 1]
    assert kept[1.0] == pruned.report.visual_tokens
    assert all(a < b for a, b in zip(kept[0.3], kept[0.7], strict=True))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: vlmprune.Uniform(top_p=0.5), "top_p=0.5 needs a method that chooses once and by one score a token, "),
        (lambda: vlmprune.PyramidDrop(top_p=0.5), "which 'pyramiddrop' does not; use keep alone"),
        (lambda: vlmprune.DivPrune(top_p=0.5), "which 'divprune' does not"),
        (lambda: vlmprune.FastV(top_p=1.5), "top_p must be a number from 0 to 1 or None, got 1.5"),
        (lambda: vlmprune.FastV(floor=3), "floor=3 is the least that top_p keeps; give top_p too"),
        (lambda: vlmprune.FastV(top_p=0.5, floor=0), "floor=0 is out of range"),
    ],
)
def test_options_that_mean_nothing(make, said):
    with pytest.raises(VlmpruneError, match=said):
        make()


def test_scores_that_are_no_weights():
    model = shared("llava")
    method = vlmprune.list_methods()["knorm"](keep=0.5, layer=2, top_p=0.5)
    with vlmprune.wrap(model, method), pytest.raises(VlmpruneError, match="none of image 0 is above zero"):
        model(**make_inputs(model))
