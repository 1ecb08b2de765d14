"""A cut cache computes what the whole cache computes where later rows may not see what was cut: logits, not tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.cache_twin import cut_logits, kept_sets
from tests.support.grid import either, few, full, grid, only_full
from tests.support.planted import Planted
from tests.support.running import assert_near, generate, outside, plan_of, shared
from tests.support.sinks import act_twin, shared_planted, var_twin
from tests.support.tiny_families import Inputs, make_inputs, padded, row
from tests.support.upstream import wrong_before
from vlmprune.hf.compatibility import CACHE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "idefics3", "paligemma")
METHODS = {
    "snapkv": vlmprune.SnapKV(0.4, window=3, pool=3),
    "snapkv-all": vlmprune.SnapKV(0.5, "all", window=3),
    "pyramidkv": vlmprune.PyramidKV(0.4, window=3),
    "adakv": vlmprune.AdaKV(0.4, window=3, pool=3),
    "adakv-all": vlmprune.AdaKV(0.5, "all", window=3),
    "task-kv": vlmprune.TaskKV(0.6, window=3, pool=3, sinks=1, recent=1, whole=0.5, near=0),
    "vl-cache": vlmprune.VLCache(3),
    "vl-cache-attention": vlmprune.VLCache(0.3, budgets="attention"),
    "vl-cache-prefix-all": vlmprune.VLCache(0.3, "all", budgets="prefix"),
    "kv-random": vlmprune.RandomKV(0.3),
    "kv-window": vlmprune.WindowKV(0.5, "all"),
}
STEPS = 32 if full() else 6
SOME = either(("llava", "gemma3", "qwen3_vl"), FAMILIES)
PRUNED = (("snapkv", 2), ("vl-cache", 0), ("kv-window", 2), ("vl-cache-attention", 0), ("adakv", 2), ("task-kv", 0))
CHANGED = (("var", "snapkv"), ("act", "snapkv"), ("var", "vl-cache"), ("act", "vl-cache"), ("var", "adakv"),
           ("act", "task-kv"))  # fmt: skip
LATER = either(("snapkv",), ("snapkv", "vl-cache", "adakv", "task-kv"))
# Every method with either kernel; the two that users know best with both.
BOTH = [("snapkv", "sdpa"), ("snapkv", "eager"), ("vl-cache", "sdpa"), ("vl-cache", "eager")]
OTHERS = [name for name in METHODS if name not in ("snapkv", "vl-cache")]
WAYS = either(
    (("snapkv", "sdpa"), ("vl-cache-attention", "eager"), ("kv-window", "sdpa")),
    [*BOTH, *((name, ("eager", "sdpa")[at % 2]) for at, name in enumerate(OTHERS))],
)


def batch(model) -> Inputs:
    """Two prompts of different lengths, and images of different sizes where a family has sizes."""
    return make_inputs(model, text_lengths=(6, 11), images=(1, 1))


def cut(model, inputs, method, steps: int = STEPS, **options) -> tuple[Tensor, Tensor, vlmprune.Report]:
    """Logits, tokens and report of a wrapped model."""
    with vlmprune.wrap(model, method) as pruned:
        logits, out = generate(model, inputs, steps, **options)
        return logits, out.sequences[:, -steps:], pruned.report


def assert_cut(report: vlmprune.Report) -> None:
    assert report.cache is not None
    assert any(kept is not None for kept in report.cache.kept)
    assert report.kv_bytes < report.kv_bytes_full


@grid(family=SOME, way=WAYS)
def test_a_cut_cache_is_the_twin(family, way):
    method, attn = way
    model = shared(family, attn)
    inputs = batch(model)
    plain, _ = generate(model, inputs, 2)
    before = outside(model)
    logits, tokens, report = cut(model, inputs, METHODS[method])
    assert_near(logits, cut_logits(model, inputs, kept_sets(report.cache.kept), tokens))
    assert_cut(report)
    whole = cut_logits(model, inputs, [None] * len(report.cache.kept), tokens)
    assert float((logits - whole).abs().max()) > 1e-2
    assert torch.equal(logits[:, 0], plain[:, 0])  # the prompt's own
    assert outside(model) == before
    assert torch.equal(generate(model, inputs, 2)[0], plain)


@grid(
    family=either(("gemma3",), FAMILIES),
    way=either((("snapkv", 2),), PRUNED),
)
def test_beside_a_pruner(family, way):
    """What the pruner has left is cut again in every layer, those before its own too."""
    method, layer = way
    model = shared(family)
    inputs = batch(model)
    plan = plan_of(model, inputs, "ragged")
    logits, tokens, report = cut(model, inputs, [Planted(plan=plan, layer=layer), METHODS[method]])
    assert [tuple(own.tolist()) for own in report.kept] == list(plan)
    expected = cut_logits(model, inputs, kept_sets(report.cache.kept), tokens, pruned=(layer, plan))
    assert_near(logits, expected)
    assert_cut(report)


@only_full
def test_positions_of_a_pruned_prompt_that_are_numbered_anew():
    model = shared("llava")
    inputs = batch(model)
    plan = plan_of(model, inputs, "equal")
    pruner = Planted(plan=plan, layer=0, positions="compact")
    logits, tokens, report = cut(model, inputs, [pruner, vlmprune.SnapKV(0.5, window=2)])
    short = Inputs({**inputs, "attention_mask": inputs["attention_mask"].clone()})
    for b, slots in enumerate(inputs["input_ids"] == model.config.image_token_id):
        gone = slots.nonzero()[:, 0]
        short["attention_mask"][b, gone[~torch.isin(torch.arange(len(gone)), torch.tensor(plan[b]))]] = 0
    # Positions count what the mask shows, so a mask without the dropped tokens numbers the others anew.
    assert_near(logits, cut_logits(model, short, kept_sets(report.cache.kept), tokens))


@pytest.mark.parametrize(("edits", "method"), few(CHANGED, 6))
def test_beside_an_intervention(method, edits):
    """The marks of sinks go along with the entries that stay."""
    model = shared_planted("llava")
    inputs = make_inputs(model, text_lengths=(12, 17), images=(1, 1))
    intervention = vlmprune.VAR() if edits == "var" else vlmprune.ACT(threshold=0.08)
    for steps, options in ((STEPS, {}), (2, {"use_cache": True})):
        logits, tokens, report = cut(model, inputs, [METHODS[method], intervention], steps, **options)
        eager, kept = shared_planted("llava", "eager"), kept_sets(report.cache.kept)
        twin = var_twin(eager, inputs) if edits == "var" else act_twin(eager, inputs, threshold=0.08)
        with twin.on():
            assert_near(logits, cut_logits(eager, inputs, kept, tokens))
        assert float((logits - cut_logits(eager, inputs, kept, tokens)).abs().max()) > 1e-3


@grid(
    family=either(("qwen2_5_vl",), [f for f in FAMILIES if f != "paligemma"]),
    method=LATER,
)
def test_a_second_turn_sees_what_the_first_left(family, method):
    """A question that comes later is answered from the cut cache; what came after the prompt is all there."""
    model = shared(family)
    inputs, more = batch(model), torch.randint(10, 99, (2, 4))
    with vlmprune.wrap(model, METHODS[method]) as pruned:
        _, first = generate(model, inputs, steps=3)
        ids = torch.cat([first.sequences, more], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 7, dtype=torch.long)], dim=1)
        follow = {"input_ids": ids, "attention_mask": mask, CACHE: first.past_key_values}
        logits, second = generate(model, follow, steps=4)
        kept = kept_sets(pruned.report.cache.kept)
    tokens = torch.cat([first.sequences[:, -3:], more, second.sequences[:, -4:]], dim=1)
    assert_near(logits, cut_logits(model, inputs, kept, tokens)[:, -4:])


@grid(family=either(("llava",), FAMILIES), method=LATER)
def test_two_beams(family, method):
    """The score of the winning beam is what the twin gives to its tokens, and beams of a prompt keep the same."""
    if family == "internvl":
        wrong_before("5.19", "beams and return sequences repeat the tiles of an image one by one")
    model = shared(family)
    inputs = batch(model)
    with vlmprune.wrap(model, METHODS[method]) as pruned:
        out = model.generate(
            **inputs, num_beams=2, max_new_tokens=5, do_sample=False, output_scores=True, return_dict_in_generate=True
        )
        kept = kept_sets(pruned.report.cache.kept)
        model(**inputs)
        assert kept_sets(pruned.report.cache.kept) == kept
    tokens = out.sequences[:, -5:]
    chances = cut_logits(model, inputs, kept, tokens).log_softmax(-1).gather(2, tokens[:, :, None])[..., 0]
    torch.testing.assert_close(out.sequences_scores, chances.mean(dim=1), rtol=0, atol=1e-4)


@only_full
@pytest.mark.parametrize("side", ["right", "both"])
@pytest.mark.parametrize("method", ["snapkv", "adakv"])
def test_padding_behind_the_prompt(side, method):
    """`generate` places a step's token by the last column; who places it by the mask gets the twin's logits."""
    model = shared("llava")
    inputs = padded(batch(model), side)
    token = torch.tensor([[20], [21]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
    with vlmprune.wrap(model, METHODS[method]) as pruned, torch.no_grad():
        cache = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0))["past_key_values"]
        step = {"input_ids": token, "attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
        logits = model(**step, **{CACHE: cache}).logits[:, -1]
        kept = kept_sets(pruned.report.cache.kept)
    assert_near(logits, cut_logits(model, inputs, kept, token.expand(-1, 2))[:, 1])


@grid(family=either(("llava",), ("llava", "qwen2_5_vl")), method=either(("pyramidkv",), tuple(METHODS)))
def test_a_row_is_cut_alike_alone_and_in_a_batch(family, method):
    model = shared(family)
    inputs = batch(model)
    with vlmprune.wrap(model, METHODS[method]) as pruned, torch.no_grad():
        model(**inputs)
        together = kept_sets(pruned.report.cache.kept)
        for i in range(2):
            model(**row(inputs, i))
            alone = kept_sets(pruned.report.cache.kept)
            shift = int((inputs["attention_mask"][i] == 0).sum())
            for one, all_of_them in zip(alone, together, strict=True):
                moved = None if one is None else [{at + shift for at in head} for head in one[0]]
                assert moved == (None if all_of_them is None else all_of_them[i])


@grid(family=either(("llava",), FAMILIES), keep=[1.0, 1000])
def test_a_budget_of_everything_changes_nothing(family, keep):
    model = shared(family)
    inputs = batch(model)
    plain, _ = generate(model, inputs, 3)
    for tokens in ("visual", "all"):
        logits, _, report = cut(model, inputs, vlmprune.SnapKV(keep, tokens), 3)
        assert torch.equal(logits, plain)
        assert report.kv_bytes == report.kv_bytes_full


@only_full
@pytest.mark.parametrize("method", ["snapkv", "adakv"])
def test_a_draft_model_checks_its_tokens_on_a_cut_cache(method):
    """Prompt and candidates come in one forward; those that are rejected are taken from the cache again."""
    model = shared("llava")
    inputs = row(batch(model), 1)
    options = {"prompt_lookup_num_tokens": 3}
    logits, tokens, report = cut(model, inputs, METHODS[method], 8, **options)
    assert_near(logits, cut_logits(model, inputs, kept_sets(report.cache.kept), tokens))


@only_full
def test_text_alone():
    """A prompt without an image is cut only where all tokens may go."""
    model = shared("llava")
    inputs = make_inputs(model, text_lengths=(9, 12), images=(0, 0))
    plain, _ = generate(model, inputs, 3)
    logits, _, report = cut(model, inputs, METHODS["snapkv"], 3)
    assert torch.equal(logits, plain)
    assert all(kept is None for kept in report.cache.kept)
    logits, tokens, report = cut(model, inputs, METHODS["snapkv-all"], 3)
    assert_near(logits, cut_logits(model, inputs, kept_sets(report.cache.kept), tokens))
    assert_cut(report)
