"""DELTA against a naive one: whole maps of the eager model, of which the layers that read a part lose the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import vlmprune
from tests.methods.kv.test_exact import batch, outside
from tests.support.cache_twin import cut_logits
from tests.support.grid import either, full, grid, only_full
from tests.support.planted import Planted
from tests.support.running import assert_near, generate, plan_of
from tests.support.sinks import Twin
from tests.support.tiny_families import build, make_inputs, row
from vlmprune import VlmpruneError
from vlmprune.hf.compatibility import CACHE
from vlmprune.methods.kv.delta import selected

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "paligemma")
LAYERS = 6
METHOD = vlmprune.Delta(pages=3, page=2, recent=1, full=1, selecting=[1, 3])
STEPS = 32 if full() else 6


def pages_of(scores: list[float], page: int, pages: int, recent: int) -> set[int]:
    """Sums of neighbouring scores, in a loop; the last pages and the best of the others."""
    sums = [sum(scores[at : at + page]) for at in range(0, len(scores), page)]
    last = list(range(len(sums) - recent, len(sums)))
    others = sorted(range(len(sums) - recent), key=lambda i: (-sums[i], i))[: pages - recent]
    return {at for i in [*last, *others] for at in range(i * page, min(len(scores), i * page + page))}


def naive(model, inputs, method, dropped=None, first=0) -> Twin:
    """Every row after the prompt chooses in the selecting layers; `dropped`: per sample, columns gone from layer
    `first` on, which are no entries there."""
    length, chosen = inputs["input_ids"].shape[1], {}

    def edit(i, maps, hidden):
        if i < method.full:
            return
        for b in range(len(maps)):
            gone = dropped[b] if dropped is not None and i >= first else set()
            for q in range(length, maps.shape[2]):
                entries = [at for at in range(q + 1) if at not in gone]
                if len(entries) < 3 * method.pages * method.page:
                    continue
                if i in method.selecting or (b, q, len(entries)) not in chosen:
                    scores = [max(float(maps[b, h, q, at]) for h in range(maps.shape[1])) for at in entries]
                    kept = pages_of(scores, method.page, method.pages, method.recent)
                    chosen[b, q, len(entries)] = {entries[at] for at in kept}
                    continue
                lost = [at for at in range(q + 1) if at not in chosen[b, q, len(entries)]]
                maps[b, :, q, lost] = 0.0
                maps[b, :, q] /= maps[b, :, q].sum(dim=-1, keepdim=True)

    return Twin(model, edit)


@grid(family=either(("llava",), FAMILIES), attn=either(("sdpa",), ("sdpa", "eager")))
def test_delta_equals_the_naive_one(family, attn):
    model, eager = build(family, layers=LAYERS, attn=attn), build(family, layers=LAYERS, attn="eager")
    inputs = batch(model)
    plain, _ = generate(model, inputs, 2)
    before = outside(model)
    with vlmprune.wrap(model, METHOD) as pruned:
        logits, out = generate(model, inputs, STEPS)
        report = pruned.report.cache
    length = inputs["input_ids"].shape[1] + STEPS - 1
    assert length >= 18
    part = 6 if length % 2 == 0 else 5
    assert report.attended == [length, length, part, length, part, part]
    assert report.saves[0] == "attention in each step"
    first = length - STEPS + 2  # entries in the first step, which is short of three times the pages, or not
    assert [step[0] for step in report.steps] == list(range(first, length + 1))
    assert [step[5] for step in report.steps] == [
        held if held < 18 else 6 - held % 2 for held in range(first, length + 1)
    ]
    with naive(eager, inputs, METHOD).on():
        assert_near(logits, cut_logits(eager, inputs, [None] * LAYERS, out.sequences[:, -STEPS:]))
    assert float((logits[:, 1] - plain[:, 1]).abs().max()) > 1e-2
    assert outside(model) == before
    assert torch.equal(generate(model, inputs, 2)[0], plain)


@only_full
def test_a_cache_that_is_short_is_read_whole():
    model = build("llava", layers=LAYERS)
    inputs = batch(model)
    plain, _ = generate(model, inputs, 4)
    with vlmprune.wrap(model, vlmprune.Delta(buffer=False)) as pruned:
        assert torch.equal(generate(model, inputs, 4)[0], plain)
    assert len(set(pruned.report.cache.attended)) == 1


@only_full
def test_layers_behind_a_pruner_select_by_themselves():
    """A row at a time, so that entries are not padded."""
    model, eager = build("llava", layers=LAYERS), build("llava", layers=LAYERS, attn="eager")
    inputs = row(batch(model), 1)
    plan = plan_of(model, inputs, "equal")
    with vlmprune.wrap(model, [Planted(plan=plan, layer=2), METHOD]):
        logits, out = generate(model, inputs, 8)
    slots = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    gone = {int(slot) for i, slot in enumerate(slots) if i not in plan[0]}
    with naive(eager, inputs, METHOD, [gone], first=2).on():
        assert_near(logits, cut_logits(eager, inputs, [None] * LAYERS, out.sequences[:, -8:], pruned=(2, plan)))


def test_a_layer_behind_a_pruner_selects_where_the_longest_row_lost_nothing():
    """The cache is then as long as before, but holds other entries of the other rows."""
    model = build("llava", layers=LAYERS)
    inputs = make_inputs(model, text_lengths=(24, 11), images=(0, 1))
    pruner, steps = Planted(plan=plan_of(model, inputs, "equal"), layer=2), []
    for selecting in ([1, 3], [1, 2, 3]):
        with vlmprune.wrap(model, [pruner, replace(METHOD, selecting=selecting)]) as pruned:
            steps.append(generate(model, inputs, 3)[0])
            assert pruned.report.layer_lengths == [24] * LAYERS
            assert pruned.report.cache.attended[2] == 26
    assert torch.equal(*steps)


@only_full
def test_beams_and_a_second_turn_run():
    """Each beam reads what it chooses; several new tokens at once read everything."""
    model = build("llava", layers=LAYERS)
    inputs = batch(model)
    with vlmprune.wrap(model, METHOD):
        model.generate(**inputs, num_beams=2, max_new_tokens=5, do_sample=False)
        _, first = generate(model, inputs, 3)
        more = torch.cat([first.sequences, torch.randint(10, 99, (2, 3))], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 6, dtype=torch.long)], dim=1)
        logits, _ = generate(model, {"input_ids": more, "attention_mask": mask, CACHE: first.past_key_values}, 1)
    assert bool(torch.isfinite(logits).all())


def test_pages_and_ties():
    weights = torch.tensor([[0.1, 0.1, 0.3, 0.0, 0.2, 0.0, 0.1, 0.1, 0.05]])
    assert selected(weights, 2, 3, 1).tolist() == [[0, 1, 2, 3, 8]]  # of equal pages the earlier one
    assert selected(weights, 2, 2, 2).tolist() == [[6, 7, 8]]
    assert selected(weights[:, :8], 4, 2, 1).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recent": 65}, "recent=65 pages are more than the 64"),
        ({"selecting": [0]}, "selecting holds 0, which cannot select; choose of 2, 3, 4, 5"),
        ({"selecting": "all"}, "selecting must be a list of ints"),
        ({"page": 0}, "page must be an int >= 1"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(VlmpruneError, match=said):
        vlmprune.wrap(build("llava", layers=LAYERS), vlmprune.Delta(**options))


def test_a_cache_with_empty_room_behind_the_newest_entries_is_refused():
    """The last pages would be of that room: with `recent=pages` a step would see nothing that is there."""
    model = build("llava", layers=LAYERS)
    inputs = row(batch(model), 1)
    with vlmprune.wrap(model, METHOD), pytest.raises(VlmpruneError, match="'delta' cannot read a part of a Static"):
        model.generate(**inputs, max_new_tokens=3, cache_implementation="static", disable_compile=True)


def test_delta_and_an_intervention_are_refused():
    with pytest.raises(VlmpruneError, match="'var' edits attention to the whole cache"):
        vlmprune.wrap(build("llava", layers=LAYERS), [vlmprune.Delta(), vlmprune.VAR()])
