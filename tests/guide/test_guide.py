"""The guide's findings against plain loops over eager maps, and what they do to the model it guides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vlmprune
from tests.support.grid import grid
from tests.support.guides import naive_guide, naive_halved_guide
from tests.support.planted import counts
from tests.support.reference import masked_logits, visual_slots
from tests.support.running import assert_near, generate, outside
from tests.support.tiny_families import FAMILIES, build, make_inputs, row
from vlmprune.guide.inputs import prompt_inputs
from vlmprune.guide.runner import Guide
from vlmprune.guide.vision import SharedTower
from vlmprune.methods.sgl import SGL

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STEPS = 5


def pair(family: str, **options):
    """A model of four layers and its guide of two."""
    return build(family, **options), guide_of(family, **options)


def guide_of(family: str, **options):
    """A small model that never generates an image token, which a loop without a cache would take for an image."""
    small = build(family, layers=2, seed=1, **options)
    with torch.no_grad():
        head = small.get_output_embeddings().weight
        head[min(small.config.image_token_id, len(head) - 1)] = 0
    return small


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_guide_whose_own_generate_drops_processors_is_as_sure():
    small = guide_of("llava")
    inputs, settings = prompt_inputs(dict(make_inputs(small))), {"max_new_tokens": STEPS}
    expected = Guide(small).answer(inputs, settings, whole=True)

    class Own(type(small)):
        def generate(self, *given, logits_processor=None, **options):
            return super().generate(*given, **options)

    small.__class__ = Own
    found = Guide(small).answer(inputs, settings, whole=True)
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-6)
    assert found.consistency == pytest.approx(expected.consistency, rel=1e-6)
    assert all(map(torch.equal, found.answers, expected.answers))


def test_towers_without_a_config_are_shared_where_they_are_equal():
    """Fuyu's is one linear map."""
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    assert not SharedTower(one, other)
    other.load_state_dict(one.state_dict())
    assert SharedTower(one, other)


@grid(family=["llava", "qwen2_5_vl", "smolvlm", "llava_next", "internvl"], attn=["sdpa", "eager"])
def test_importance_confidence_and_consistency_equal_plain_loops(family, attn):
    small, eager = guide_of(family, attn=attn), guide_of(family, attn="eager")
    inputs = make_inputs(small)
    end = int(generate(small, inputs, steps=STEPS)[1].sequences[1, -3])  # the second sample ends after three tokens
    for normalise in (True, False):
        guide = Guide(small, SGL(small, normalise_consistency=normalise))
        settings = {"max_new_tokens": STEPS, "eos_token_id": end, "pad_token_id": 0}
        batch = guide.answer(prompt_inputs(dict(inputs)), settings, whole=True)
        for i in range(3):
            expected = naive_guide(eager, row(inputs, i), STEPS, end)
            alone = guide.answer(prompt_inputs(dict(row(inputs, i))), settings, whole=True)
            for found, at in ((batch, i), (alone, 0)):
                close(found.importance[at], expected.importance)
                assert torch.equal(found.answers[at], expected.answer)
                assert found.confidence[at] == pytest.approx(expected.confidence, rel=1e-4)
                consistency = expected.mean if normalise else expected.product
                assert found.consistency[at] == pytest.approx(consistency, rel=1e-3)
    assert len(batch.answers[1]) < STEPS


def test_steps_of_the_ranking_are_limited():
    small, eager = guide_of("llava"), guide_of("llava", attn="eager")
    inputs = make_inputs(small)
    guide = Guide(small, SGL(small, guide_steps=2))
    settings = {"max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0}
    short = guide.answer(dict(inputs), settings, whole=False)
    whole = guide.answer(dict(inputs), settings, whole=True)
    assert [len(a) for a in short.answers] == [2, 2, 2]
    assert [len(a) for a in whole.answers] == [STEPS] * 3
    for i in range(3):
        expected = naive_guide(eager, row(inputs, i), 2).importance
        close(short.importance[i], expected)
        close(whole.importance[i], expected)
    prompt = Guide(small, SGL(small, guide_steps=1))
    for one, other in zip(
        prompt.answer(dict(inputs), settings, whole=False).importance, prompt.rank(dict(inputs)).importance, strict=True
    ):
        close(one, other)


@grid(family=["llava", "qwen3_vl", "gemma3", "smolvlm", "mllama"], attn=["sdpa", "eager"])
def test_a_guide_drops_its_own_tokens_halfway_and_ranks_as_plain_loops_do(family, attn):
    layers = 6 if family == "mllama" else 4
    small, eager = (build(family, layers=layers, seed=1, attn=one) for one in (attn, "eager"))
    for model in (small, eager):
        with torch.no_grad():
            head = model.get_output_embeddings().weight
            head[min(model.config.image_token_id, len(head) - 1)] = 0
    inputs = make_inputs(small)
    guide = Guide(small, SGL(small, guide_keep=3))
    settings = {"max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0}
    batch = guide.answer(prompt_inputs(dict(inputs)), settings, whole=True)
    plain = Guide(small).answer(prompt_inputs(dict(inputs)), settings, whole=True)
    for i in range(3):
        expected = naive_halved_guide(eager, row(inputs, i), STEPS, 3)
        alone = guide.answer(prompt_inputs(dict(row(inputs, i))), settings, whole=True)
        for found, at in ((batch, i), (alone, 0)):
            close(found.importance[at], expected.importance)
            assert torch.equal(found.answers[at], expected.answer)
            assert found.confidence[at] == pytest.approx(expected.confidence, rel=1e-4)
        assert not torch.allclose(plain.importance[i], batch.importance[i], rtol=1e-3)
    assert batch.flops < plain.flops


def test_a_guide_that_drops_tokens_ranks_for_the_model():
    """The model's logits are those of the masked model that keeps what plain loops rank best."""
    model, small, eager = build("llava"), *(build("llava", layers=4, seed=1, attn=one) for one in ("sdpa", "eager"))
    inputs = make_inputs(model)
    plan = []
    for i in range(3):
        scores = naive_halved_guide(eager, row(inputs, i), 1, 5).importance
        plan.append(torch.tensor(sorted(sorted(range(len(scores)), key=lambda v: -float(scores[v]))[:3])))
    with vlmprune.wrap(model, SGL(small, keep=3, layer=0, guide_steps=1, guide_keep=5)) as pruned:
        logits, out = generate(model, inputs, steps=STEPS)
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, plan, strict=True))
        assert len(pruned.report.consistency) == len(pruned.report.confidence) == 3
        assert pruned.report.method["guide_keep"] == 5
    assert_near(logits, masked_logits(model, inputs, plan, 0, STEPS, out.sequences[:, -STEPS:]))


def test_the_guides_flops_are_its_prompt_its_steps_and_its_second_look():
    """Counted from the weights of a Llama backbone: 2 a multiply-add, the causal half of attention, the head a row."""
    small = guide_of("llava")
    text, head = small.model.language_model, small.lm_head.weight.numel()
    inputs = row(make_inputs(small), 0)
    settings = {"max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0}
    answer = Guide(small).answer(dict(inputs), settings, whole=True)
    weights = [sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)) for layer in text.layers]
    width = text.config.num_attention_heads * text.config.head_dim

    def forward(rows: int, before: int = 0) -> int:
        pairs = sum(range(before + 1, before + rows + 1))
        return sum(2 * (weight * rows + 2 * width * pairs) for weight in weights)

    prompt, visual = inputs["input_ids"].shape[1], answer.layouts[0].count
    kept = max(1, int(visual * 0.05 + 0.5))  # the paper checks the answer with 5 % of the tokens
    second = prompt + STEPS - 1 - visual + kept
    steps = sum(forward(1, prompt + step) + 2 * head for step in range(STEPS - 1))
    assert answer.flops == forward(prompt) + 2 * head + steps + forward(second) + 2 * head * STEPS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_is_ranked_by_the_rows_of_the_prompt(family):
    model, small = pair(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, SGL(small, keep=0.4)) as pruned, torch.no_grad():
        logits = model(**inputs).logits[:, -1]
        report = pruned.report
        ranked = pruned._session.guide.rank(prompt_inputs(dict(inputs))).importance
    for kept, scores in zip(report.kept, ranked, strict=True):
        assert len(kept) == int(0.4 * len(scores) + 0.5)
        assert float(scores[kept].min()) >= float(scores[~torch.isin(torch.arange(len(scores)), kept)].max())
    assert_near(logits, masked_logits(model, inputs, report.kept, 1, 1)[:, 0])
    assert report.exited == [False] * 3
    assert report.confidence is None
    assert report.guide_flops > 0
    assert "guide" in report.seconds


@grid(family=FAMILIES, layer=[None, 0, 2])
def test_generate_equals_masking_and_a_row_equals_itself_alone(family, layer):
    model, small = pair(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, SGL(small, keep=0.3, layer=layer)) as pruned:
        logits, out = generate(model, inputs, steps=STEPS)
        report = pruned.report
        alone = []
        for i in range(3):
            lone, _ = generate(model, row(inputs, i), steps=STEPS)
            alone.append(pruned.report.kept[0])
            assert_near(lone[0], logits[i])
    at = layer if layer is not None else 1
    assert_near(logits, masked_logits(model, inputs, report.kept, at, STEPS, out.sequences[:, -STEPS:]))
    assert report.kept_tokens == [max(1, int(0.3 * v + 0.5)) for v in counts(model, inputs)]
    assert all(torch.equal(a, b) for a, b in zip(report.kept, alone, strict=True))


@grid(family=["llava", "gemma3"], diversity=[1.0, 0.5, 0.0], keep=[3, 5, 2])
def test_diversity_is_coverage_weighted_by_the_guides_importance(family, diversity, keep):
    model, small = pair(family)
    eager = guide_of(family, attn="eager")
    inputs = make_inputs(model)
    with torch.no_grad():
        features = model(**inputs, output_hidden_states=True).hidden_states[0]
    plan = []
    for i, slots in enumerate(visual_slots(model, inputs)):
        weights = [float(w) ** diversity for w in naive_guide(eager, row(inputs, i), STEPS).importance]
        visual = features[i, slots].double()
        similar = [[float(torch.cosine_similarity(a, b, dim=0)) for b in visual] for a in visual]
        chosen: list[int] = []
        for _ in range(keep):
            gains = [
                round(w * sum(max(0.0, s[v] - max([0.0, *(s[c] for c in chosen)])) for s in similar), 10)
                for v, w in enumerate(weights)
            ]
            chosen.append(max((v for v in range(len(weights)) if v not in chosen), key=lambda v: gains[v]))
        plan.append(torch.tensor(sorted(chosen)))
    with vlmprune.wrap(model, SGL(small, keep=keep, layer=0, diversity=diversity)) as pruned:
        logits, out = generate(model, inputs, steps=STEPS)
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, plan, strict=True))
    assert_near(logits, masked_logits(model, inputs, plan, 0, STEPS, out.sequences[:, -STEPS:]))


@grid(family=FAMILIES, images=[(1, 1, 1), (2, 1, 2)])
def test_samples_that_exit_get_the_guides_answer_and_the_model_never_sees_them(family, images):
    model, small = pair(family)
    inputs = make_inputs(model, images=images)
    with torch.no_grad():
        theirs = small.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    with vlmprune.wrap(model, SGL(small, keep=0.4)) as pruned:
        ours = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
        never = pruned.report
    sure = [(a + b) / 2 for a, b in zip(never.confidence, never.consistency, strict=True)]
    threshold = sorted(sure)[1]
    seen: list[int] = []
    hook = model.base_model.register_forward_pre_hook(
        lambda m, a, k: seen.append(len(k["input_ids"] if "input_ids" in k else a[0])), with_kwargs=True
    )
    with vlmprune.wrap(model, SGL(small, keep=0.4, exit_at=threshold)) as pruned:
        out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        some = pruned.report
    with vlmprune.wrap(model, SGL(small, keep=0.4, exit_at=0.0)) as pruned:
        calls = len(seen)
        all_out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        every = pruned.report
        assert len(seen) == calls, "the model ran although every sample exited"
    hook.remove()
    assert some.exited == [s >= threshold for s in sure]
    assert sum(some.exited) == 2
    assert set(seen) == {1}
    for i in range(3):
        assert torch.equal(out[i, -STEPS:], (theirs if some.exited[i] else ours)[i])
        assert some.kept_tokens[i] == (0 if some.exited[i] else never.kept_tokens[i])
    assert torch.equal(all_out[:, -STEPS:], theirs)
    assert torch.equal(all_out[:, :-STEPS], inputs["input_ids"])
    assert every.exited == [True] * 3
    assert (every.prefill_flops, every.kv_bytes, every.kept_tokens) == (0, 0, [0, 0, 0])
    assert every.visual_tokens == never.visual_tokens == some.visual_tokens
    assert every.prefill_flops_full == some.prefill_flops_full == never.prefill_flops_full
    assert every.kv_bytes_full == never.kv_bytes_full
    assert 0 < some.prefill_flops < never.prefill_flops
    assert some.to_dict()["exited"] == some.exited
    assert "guide answered" in str(some)


def test_exits_of_different_lengths_are_padded_and_beams_run():
    model, small = pair("llava")
    inputs = make_inputs(model)
    plain = small.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[:, -STEPS:]
    end = int(plain[0, 1])
    options = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    with torch.no_grad():
        theirs = small.generate(**inputs, **options)
    with vlmprune.wrap(model, SGL(small, keep=0.4, exit_at=0.0)):
        assert torch.equal(model.generate(**inputs, **options), theirs)
        both = model.generate(**inputs, **options, num_beams=2, num_return_sequences=2, return_dict_in_generate=True)
        assert torch.equal(both.sequences, theirs.repeat_interleave(2, 0))
    with vlmprune.wrap(model, SGL(small, keep=0.4)) as pruned:
        beams = model.generate(**inputs, max_new_tokens=STEPS, num_beams=3, do_sample=False)
        assert len(beams) == 3
        assert pruned.report.kept_tokens == [4, 4, 4]
        kept = pruned.report.kept
        model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=False)
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, kept, strict=True))


def test_an_exit_streams_its_answer():
    class Streamer:
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got += value.flatten().tolist()

        def end(self):
            self.ended = True

    model, small = pair("llava")
    inputs = row(make_inputs(model), 0)
    for exit_at in (0.0, None):
        streamer = Streamer()
        with vlmprune.wrap(model, SGL(small, keep=0.4, exit_at=exit_at)):
            out = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, streamer=streamer)
        assert streamer.ended
        assert streamer.got == out[0].tolist()


def test_one_vision_pass_where_the_towers_are_equal():
    model, small = pair("llava")
    inputs = make_inputs(model)
    calls: list[int] = []
    tower = model.model.vision_tower
    own = type(tower).forward

    def counted(*args, **kwargs):
        calls.append(1)
        return own(tower, *args, **kwargs)

    tower.load_state_dict(small.model.vision_tower.state_dict())
    with vlmprune.wrap(model, SGL(small, keep=0.3)) as pruned:
        pruned._session.same = False  # as if the two read other pixels: nothing is shared
        guide_inputs = dict(inputs)
        expected, _ = generate(model, inputs, steps=STEPS, guide_inputs=guide_inputs)
    with vlmprune.wrap(model, SGL(small, keep=0.3)) as pruned:
        tower.forward = counted
        shared, _ = generate(model, inputs, steps=STEPS)
        assert not calls, "the model's own tower ran"
        assert torch.equal(shared, expected)
        assert tower.__dict__["forward"] is counted, "somebody else's forward was not put back"
        sure = pruned.report.confidence[0] / 2 + pruned.report.consistency[0] / 2
    with vlmprune.wrap(model, SGL(small, keep=0.3, exit_at=sure)) as pruned:
        model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        assert True in pruned.report.exited
        assert not calls
        with torch.no_grad():
            next(tower.parameters()).add_(0.5)
        generate_again = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        assert calls, "changed weights must end the sharing"
        assert len(generate_again) == 3
    del tower.forward


def test_the_guides_second_look_takes_the_features_of_its_first():
    """transformers 5.24 hands `use_cache` on to the tower, and a call with other options was computed again."""
    model, small = pair("llava")
    passes: list[int] = []
    inside = next(part for name, part in small.model.vision_tower.named_modules() if name.endswith("encoder.layers"))[0]
    handle = inside.register_forward_hook(lambda *_: passes.append(1))
    with vlmprune.wrap(model, SGL(small, keep=0.3)) as pruned:
        generate(model, make_inputs(model), steps=STEPS)
        assert pruned.report.consistency is not None
    handle.remove()
    assert len(passes) == 1


def test_budget_in_tokens_sets_the_depth_by_the_batchs_share():
    model, small = build("llava", layers=8), guide_of("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, SGL(small, keep=4)) as pruned, torch.no_grad():
        model(**inputs)
        report = pruned.report
    first = next(i for i, n in enumerate(report.layer_lengths) if n < report.layer_lengths[0])
    assert first == int(4 / 9 * 8)


def test_everything_is_gone_after_a_call_and_after_unwrap():
    model, small = pair("llava")
    inputs = make_inputs(model)
    with torch.no_grad():
        model(**inputs), small(**inputs)
    before = outside(model), outside(small)
    with vlmprune.wrap(model, SGL(small, keep=0.4)):
        model.generate(**inputs, max_new_tokens=2)
        assert outside(small) == before[1]
    assert outside(model) == before[0]
    with vlmprune.wrap(model, "fastv-oracle", keep=0.4) as pruned:
        model.generate(**inputs, max_new_tokens=2)
        assert pruned.report.kept_tokens == [4, 4, 4]
    assert outside(model) == before[0]


def test_the_oracle_ranks_by_the_models_own_maps():
    model, eager = build("llava"), build("llava", attn="eager")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, "fastv-oracle", keep=0.4) as pruned:
        model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
        report = pruned.report
    for i in range(3):
        importance = naive_guide(eager, row(inputs, i), STEPS).importance
        best = sorted(sorted(range(9), key=lambda v: -float(importance[v]))[:4])
        assert report.kept[i].tolist() == best
