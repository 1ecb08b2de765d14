"""The promise, for each of the twelve families: pruning computes what masking the dropped tokens would.

One suite, written once. A batch of three prompts of different lengths, left-padded; the naive twin is
`support/reference.py`. Logits are compared, not tokens: a wrong sliding window leaves greedy tokens as they are.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vlmprune
from tests.support.grid import either, grid
from tests.support.planted import Planted, counts
from tests.support.reference import language_model, visual_slots
from tests.support.running import STEPS, assert_near, generate, outside, plan_of, reference, shared
from tests.support.tiny_families import FAMILIES, build, make_inputs, row

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LAYERS = [0, 1, 2]


def built_in(**options) -> list:
    return [vlmprune.Random(**options), vlmprune.Uniform(**options), vlmprune.Downsample(**options)]


@grid(family=FAMILIES, attn=["sdpa", "eager"], kind=either(["ragged"], ["equal", "ragged"]), layer=LAYERS)
def test_every_step_equals_masking(family, attn, kind, layer):
    model = shared(family, attn)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, kind)
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)) as pruned:
        logits, out = generate(model, inputs)
        report = pruned.report
    assert_near(logits, reference(model, inputs, plan, layer, STEPS, out.sequences[:, -STEPS:]))
    assert [tuple(kept.tolist()) for kept in report.kept] == list(plan)
    assert report.visual_tokens == counts(model, inputs)


@grid(family=FAMILIES, layer=LAYERS)
def test_two_images_in_a_prompt(family, layer):
    """Budgets are per image: each keeps its share, and the logits are those of masking the rest."""
    model = shared(family)
    inputs = make_inputs(model, images=(2, 1, 2))
    with vlmprune.wrap(model, vlmprune.Random(keep=0.4, layer=layer)) as pruned:
        logits, out = generate(model, inputs)
        report = pruned.report
    assert_near(logits, reference(model, inputs, report.kept, layer, STEPS, out.sequences[:, -STEPS:]))
    assert [len(spans) for spans in report.images] == [2, 1, 2]
    assert report.visual_tokens == counts(model, inputs)
    for spans, kept in zip(report.images, report.kept, strict=True):
        assert [len(span.kept) for span in spans] == [int(0.4 * span.count + 0.5) for span in spans]
        assert torch.equal(torch.cat([span.kept for span in spans]), kept)


@grid(family=FAMILIES, layer=[0, 2])
def test_a_row_of_a_batch_equals_the_row_alone(family, layer):
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        batched, _ = generate(model, inputs)
    for i in range(3):
        with vlmprune.wrap(model, Planted(plan=plan[i : i + 1], layer=layer)):
            alone, _ = generate(model, row(inputs, i))
        assert_near(alone[0], batched[i])


@pytest.mark.parametrize("family", FAMILIES)
def test_built_in_pruners_choose_alike_alone_and_in_a_batch(family):
    model = shared(family)
    inputs = make_inputs(model)
    for method in [*built_in(keep=0.5, layer=1), vlmprune.FastV(keep=0.5, layer=2)]:
        with vlmprune.wrap(model, method) as pruned:
            batched = model(**inputs).logits[:, -1]
            kept = pruned.report.kept
            for i in range(3):
                alone = model(**row(inputs, i)).logits[:, -1]
                assert torch.equal(pruned.report.kept[0], kept[i]), method.name
                assert_near(alone[0], batched[i])


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_everything_is_bit_identical(family):
    model = shared(family)
    inputs = make_inputs(model)
    plain, _ = generate(model, inputs)
    everything = [*built_in(keep=1.0), vlmprune.FastV(keep=1.0), *built_in(keep=10_000), vlmprune.Unpruned()]
    for method in everything:
        with vlmprune.wrap(model, method) as pruned:
            assert torch.equal(generate(model, inputs)[0], plain), method
            assert pruned.report.kept_tokens == pruned.report.visual_tokens == counts(model, inputs)
            assert pruned.report.retention == 1.0
            assert pruned.report.prefill_flops == pruned.report.prefill_flops_full


@grid(family=FAMILIES, attn=["sdpa", "eager"])
def test_unwrap_leaves_nothing(family, attn):
    model = shared(family, attn)
    inputs = make_inputs(model)
    plain, _ = generate(model, inputs)
    before = outside(model)
    for method in [*built_in(keep=0.3), vlmprune.FastV(keep=0.3)]:
        pruned = vlmprune.wrap(model, method)
        assert not torch.equal(generate(model, inputs)[0], plain)
        assert pruned.unwrap() is model
        assert outside(model) == before
        assert torch.equal(generate(model, inputs)[0], plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_models_side_by_side_do_not_touch_each_other(family):
    """Same weights, different budgets, calls in turns; a third, plain one of the class stays plain."""
    one, two, plain = build(family), build(family), shared(family)
    inputs = make_inputs(one)
    first, second = plan_of(one, inputs, "equal"), plan_of(one, inputs, "ragged")
    with vlmprune.wrap(one, Planted(plan=first, layer=1)), vlmprune.wrap(two, Planted(plan=second, layer=0)):
        results = [generate(model, inputs, steps=3) for model in (one, two, plain, one)]
    assert_near(results[0][0], reference(plain, inputs, first, 1, 3, results[0][1].sequences[:, -3:]))
    assert_near(results[1][0], reference(plain, inputs, second, 0, 3, results[1][1].sequences[:, -3:]))
    assert torch.equal(results[2][0], generate(plain, inputs, steps=3)[0])
    assert torch.equal(results[3][0], results[0][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_wrapping_again_replaces_the_method(family):
    model = shared(family)
    inputs = make_inputs(model)
    before = outside(model)
    plan = plan_of(model, inputs, "equal")
    older = vlmprune.wrap(model, vlmprune.FastV(keep=0.2))
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)) as pruned:
        for use in (lambda: older(**inputs), lambda: older.generate(**inputs), lambda: older.ask(None, "x")):
            with pytest.raises(vlmprune.InactiveHandleError):
                use()
        older.unwrap()  # does nothing to the newer one
        logits, out = generate(pruned, inputs, steps=3)
    assert_near(logits, reference(model, inputs, plan, 1, 3, out.sequences[:, -3:]))
    assert outside(model) == before


class Fails(Exception):
    pass


@grid(family=FAMILIES, where=[0, 1, 3])
def test_an_exception_inside_a_forward_leaves_nothing_half_pruned(family, where):
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    before = outside(model)
    plain, _ = generate(model, inputs, steps=3)

    def fail(module: nn.Module, args: object) -> None:
        raise Fails

    with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
        good, _ = generate(model, inputs, steps=3)
        handle = language_model(model).layers[where].register_forward_pre_hook(fail)
        for call in (lambda: model(**inputs), lambda: model.generate(**inputs, max_new_tokens=2)):
            with pytest.raises(Fails):
                call()
        handle.remove()
        assert torch.equal(generate(model, inputs, steps=3)[0], good)
        handle = language_model(model).layers[where].register_forward_pre_hook(fail)
        with pytest.raises(Fails):
            model(**inputs)
        handle.remove()
    assert outside(model) == before
    assert torch.equal(generate(model, inputs, steps=3)[0], plain)


@grid(family=FAMILIES, attn=["sdpa", "eager"])
def test_fastv_keeps_what_a_naive_eager_twin_keeps(family, attn):
    """The twin: the attention map of the layer before from an eager model, last row, head mean, a loop for top-k."""
    eager = shared(family, "eager")
    inputs = make_inputs(eager)
    layer = 2  # Mllama's first cross-attention layer is layer 1: the first to read attention to the image in
    with torch.no_grad():
        attention = eager(**inputs, output_attentions=True, use_cache=False).attentions[layer - 1]
    model = shared(family, attn)
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.5, layer=layer)) as pruned:
        model(**inputs)
        report = pruned.report
    assert report.method["name"] == "fastv"
    for i, slots in enumerate(visual_slots(model, inputs)):
        received = attention[i, :, -1].mean(dim=0)[slots].tolist()
        best = sorted(range(len(received)), key=lambda j: -received[j])
        share = len(received) / 2
        count = max(1, int(share + 0.5))
        assert report.kept[i].tolist() == sorted(best[:count])


@pytest.mark.parametrize("family", FAMILIES)
def test_downsample_pools_the_grid(family):
    """The twin: every cell of the coarser grid is the plain mean of the tokens whose centre lies in it."""
    model = shared(family)
    inputs = make_inputs(model)
    entering = {}
    layer = 1
    target = language_model(model).layers[layer]

    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        entering[len(entering)] = kwargs.get("cross_attention_states") if family == "mllama" else args[0]

    for wrapped in (False, True):
        context = vlmprune.wrap(model, vlmprune.Downsample(keep=0.4, layer=layer)) if wrapped else None
        # Appended after the package's own hook, which is put in front: it sees what the layer really gets.
        handle = target.register_forward_pre_hook(record, with_kwargs=True)
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        if context is not None:
            report = context.report
            context.unwrap()
    full = entering[0].reshape(len(report.images), -1, entering[0].shape[-1])
    pruned = entering[1].reshape(len(report.images), -1, entering[1].shape[-1])
    for i, slots in enumerate(visual_slots(model, inputs)):
        (span,) = report.images[i]
        assert len(report.kept[i]) <= max(1, int(0.4 * len(slots) + 0.5))
        rows, cols = cells_of(report.kept[i], span)
        for token in report.kept[i].tolist():
            members = [j for j in range(span.count) if same_cell(span.xy[j], span.xy[token], rows, cols)]
            mean = full[i, slots[members]].mean(dim=0)
            assert (pruned[i] - mean).abs().amax(dim=-1).min() < 1e-5


def cells_of(kept: torch.Tensor, span: vlmprune.ImageSpan) -> tuple[int, int]:
    """The grid the kept anchors stand on: the only one that has one of them in each cell."""
    grids = [(r, len(kept) // r) for r in range(1, span.grid[1] + 1) if len(kept) % r == 0]
    fits = [
        (r, c)
        for r, c in grids
        if c <= span.grid[2]
        and len({(int(span.xy[k][1] * r), int(span.xy[k][0] * c)) for k in kept.tolist()}) == len(kept)
    ]
    return min(fits, key=lambda grid: abs(grid[0] * span.grid[2] - grid[1] * span.grid[1]))


def same_cell(a: torch.Tensor, b: torch.Tensor, rows: int, cols: int) -> bool:
    if bool(torch.isnan(a).any()):
        return False
    return int(a[0] * cols) == int(b[0] * cols) and int(a[1] * rows) == int(b[1] * rows)
