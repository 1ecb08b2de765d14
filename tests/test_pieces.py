"""Prompts that come in pieces: `generate` runs them whole, what is right goes on, what cannot be is one sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import vlmprune
from tests.support.planted import Planted
from tests.support.reference import all_logits, visual_slots
from tests.support.running import assert_near, generate, plan_of, reference, shared
from tests.support.tiny_families import FAMILIES, IMAGE, Inputs, build, make_inputs, of_ids, row
from vlmprune.hf.compatibility import CACHE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

TEXTS = (12, 9, 14)
ASKING = {
    "fastv": vlmprune.FastV(keep=0.4),
    "cdpruner": vlmprune.CDPruner(keep=0.4),
    "mmtok": vlmprune.MMTok(keep=0.4),
    "sparsevlm": vlmprune.SparseVLM(keep=0.4),
    "pyramiddrop": vlmprune.PyramidDrop(keep=0.4, layer=1),
    "dart": vlmprune.Dart(keep=0.4),
}
PIECES = [f for f in FAMILIES if f != "paligemma"]  # whose whole prompt sees itself in both directions
SEQUENCE_WISE = ("input_ids", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")


def end_of_image(model: Any, inputs: Inputs) -> int:
    """The first column behind the last visual token of a single prompt."""
    return int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1


def first_piece(inputs: Inputs, end: int) -> dict[str, Tensor]:
    return {k: v[:, :end] if k in (*SEQUENCE_WISE, "attention_mask") else v for k, v in inputs.items()}


def later_piece(model: Any, inputs: Inputs, start: int, end: int, cache: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"input_ids": inputs["input_ids"][:, start:end], CACHE: cache}
    out["attention_mask"] = inputs["attention_mask"][:, :end]
    for name in ("token_type_ids", "cross_attention_mask"):
        if name in inputs:
            out[name] = inputs[name][:, start:end]
    if "image_grid_thw" in inputs:  # Qwen does not find the positions of a piece by itself
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
        positions, _ = model.model.get_rope_index(**{name: inputs[name] for name in names})
        out["position_ids"] = positions[..., start:end]
    return out


# --- generate knows the whole prompt --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 13])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_of_generate(family, size):
    """Cut in the image, and behind it."""
    model = shared(family)
    inputs = make_inputs(model, text_lengths=TEXTS)
    plan = plan_of(model, inputs, "ragged")
    with vlmprune.wrap(model, Planted(plan=plan, layer=2)) as pruned:
        logits, out = generate(model, inputs, steps=3, prefill_chunk_size=size)
        report = pruned.report
    assert_near(logits, reference(model, inputs, plan, 2, 3, out.sequences[:, -3:]))
    assert [note for note in report.notes if "prefill_chunk_size" in note and str(size) in note and "whole" in note]


@pytest.mark.parametrize(
    ("name", "where"),
    [*((name, "call") for name in (*ASKING, "sgl", "var")), *(("fastv", w) for w in ("config", "second", "model"))],
)
def test_chunks_change_no_ranking(name, where):
    model = build("llava", layers=6) if where == "model" or name == "var" else shared("llava")
    inputs = make_inputs(model, text_lengths=TEXTS)
    method = vlmprune.SGL(guide=build("llava", seed=1), keep=0.4) if name == "sgl" else ASKING.get(name, vlmprune.VAR())
    config = copy.deepcopy(model.generation_config)
    config.prefill_chunk_size = 13
    config.max_new_tokens, config.do_sample = 3, False
    config.output_logits = config.return_dict_in_generate = True
    with vlmprune.wrap(model, method) as pruned:
        whole, _ = generate(model, inputs, steps=3)
        kept = pruned.report.kept
        if where == "call":
            logits, _ = generate(model, inputs, steps=3, prefill_chunk_size=13)
        elif where == "config":
            logits = torch.stack(model.generate(**inputs, generation_config=config).logits, dim=1)
        elif where == "second":
            ids = inputs.pop("input_ids")
            logits = torch.stack(model.generate(ids, config, **inputs).logits, dim=1)
        else:
            model.generation_config.prefill_chunk_size = 13
            logits, _ = generate(model, inputs, steps=3)
        report = pruned.report
    assert torch.equal(logits, whole)
    assert all(torch.equal(a, b) for a, b in zip(report.kept, kept, strict=True))
    assert any("prefill_chunk_size=13" in note for note in report.notes)


def test_chunks_of_text_stay_chunks():
    model = shared("llava")
    inputs = {"input_ids": torch.randint(10, 99, (2, 15)), "attention_mask": torch.ones(2, 15, dtype=torch.long)}
    lengths: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda m, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with vlmprune.wrap(model, "fastv"):
        generate(model, inputs, steps=2, prefill_chunk_size=6)
    hook.remove()
    assert lengths[:3] == [6, 6, 3]


# --- pieces by the caller's own hand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method"), [*((family, "planted") for family in PIECES), ("llava", "divprune"), ("qwen3_vl", "knorm")]
)
def test_methods_that_do_not_ask_go_on(family, method):
    """The image first and the question in two more pieces: logits are those of the masked model."""
    model = shared(family)
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    end, length = end_of_image(model, inputs), inputs["input_ids"].shape[1]
    made = {"divprune": vlmprune.DivPrune(2, 2), "knorm": vlmprune.KNorm(2, 2)}.get(
        method, Planted(plan=((0, 2),), layer=2)
    )
    with vlmprune.wrap(model, made) as pruned, torch.no_grad():
        cache = DynamicCache(config=model.config.get_text_config())
        parts = [model(**first_piece(inputs, end), **{CACHE: cache}, use_cache=True).logits[:, -1:]]
        kept = pruned.report.kept
        for start, stop in ((end, end + 3), (end + 3, length)):
            parts.append(model(**later_piece(model, inputs, start, stop, cache)).logits)
    full = all_logits(model, inputs, kept, 2)
    assert_near(torch.cat(parts, dim=1), full[:, end - 1 :])


@pytest.mark.parametrize("how", ["forward", "generate"])
@pytest.mark.parametrize("name", ASKING)
def test_an_image_in_a_prefix_and_the_question_later(name, how):
    model = shared("llava")
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    end, length = end_of_image(model, inputs), inputs["input_ids"].shape[1]
    with vlmprune.wrap(model, ASKING[name]), torch.no_grad():
        cache = model(**first_piece(inputs, end), use_cache=True)[CACHE]
        call, given = model, later_piece(model, inputs, end, length, cache)
        if how == "generate":  # which is given all ids
            call, given = model.generate, {**given, "input_ids": inputs["input_ids"], "max_new_tokens": 2}
        with pytest.raises(vlmprune.VlmpruneError, match="one prompt, without a cache"):
            call(**given)


@pytest.mark.parametrize("family", [f for f in PIECES if f not in ("llava",)])
def test_the_same_in_every_family(family):
    """Where markers or words stand between image and question, only `generate` tells a question from an answer."""
    model = shared(family)
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    end, length = end_of_image(model, inputs), inputs["input_ids"].shape[1]
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4)), torch.no_grad():
        cache = DynamicCache(config=model.config.get_text_config())
        model(**first_piece(inputs, end), **{CACHE: cache}, use_cache=True)
        with pytest.raises(vlmprune.VlmpruneError, match="prompt ended with its image"):
            model(**later_piece(model, inputs, end, length, cache))
        cache = DynamicCache(config=model.config.get_text_config())
        model(**first_piece(inputs, end + 3), **{CACHE: cache}, use_cache=True)
        with pytest.warns(UserWarning, match="belong to the question"):
            model(**later_piece(model, inputs, end + 3, length, cache))
        if family == "mllama":  # generate wants its cross-attention mask for the new tokens alone
            return
        cache = DynamicCache(config=model.config.get_text_config())
        model(**first_piece(inputs, end + 3), **{CACHE: cache}, use_cache=True)
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with pytest.raises(vlmprune.VlmpruneError, match="later piece"):
            model.generate(**text, **{CACHE: cache}, max_new_tokens=2)


def test_a_mask_that_covers_more_tells_of_pieces_to_come():
    model = shared("llava")
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    end = end_of_image(model, inputs) + 2
    part = {**first_piece(inputs, end), "attention_mask": inputs["attention_mask"]}
    with vlmprune.wrap(model, "fastv", keep=0.4), pytest.raises(vlmprune.VlmpruneError, match="attention_mask"):
        model(**part, use_cache=True)
    with vlmprune.wrap(model, Planted(plan=((0, 2),), layer=1)), torch.no_grad():
        assert_near(model(**part).logits[:, -1], model(**first_piece(inputs, end)).logits[:, -1])


def test_of_a_wider_mask_the_first_columns_are_the_prompts():
    """Left-padded, the mask's last columns would call padding real."""
    model = shared("llava")
    inputs = make_inputs(model, text_lengths=TEXTS)
    end = int((inputs["input_ids"] == IMAGE).nonzero()[:, 1].max()) + 1
    plan = plan_of(model, inputs, "ragged")
    part = {**first_piece(inputs, end), "attention_mask": inputs["attention_mask"]}
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)) as pruned, torch.no_grad():
        model(**part)
        rows = pruned.report.rows
        model(**first_piece(inputs, end))
        assert all(torch.equal(a, b) for a, b in zip(rows, pruned.report.rows, strict=True))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mllama"])
def test_an_image_cut_in_two(family):
    model = shared(family)
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    with (
        vlmprune.wrap(model, "uniform", keep=0.4),
        pytest.raises(vlmprune.VlmpruneError, match="run the prompt whole"),
        torch.no_grad(),
    ):
        model(**first_piece(inputs, end_of_image(model, inputs) - 4), use_cache=True)


@pytest.mark.parametrize(("family", "method"), [*((f, "fastv") for f in FAMILIES), ("llava", "uniform")])
def test_text_in_a_prefix_and_the_image_later(family, method):
    model = shared(family)
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    cache = DynamicCache(config=model.config.get_text_config())
    ids = torch.randint(10, 99, (1, 5))
    with vlmprune.wrap(model, method, keep=0.4), torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), **{CACHE: cache}, use_cache=True)
        whole = {**inputs, "attention_mask": torch.cat([torch.ones_like(ids), inputs["attention_mask"]], dim=1)}
        with pytest.raises(vlmprune.VlmpruneError, match="one prompt without a cache"):
            model(**whole, **{CACHE: cache})


# --- later turns, answers, candidates -------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [1, 3])
def test_a_second_turn_is_no_piece(answer):
    """Also after an answer of one token, which needs no step."""
    model = shared("llava")
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4)) as pruned:
        _, first = generate(model, inputs, steps=answer)
        kept = pruned.report.kept
        ids = torch.cat([first.sequences, torch.randint(10, 99, (1, 5))], dim=1)
        follow = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: first[CACHE]}
        logits, second = generate(model, follow, steps=3)
    tokens = second.sequences[:, inputs["input_ids"].shape[1] :]
    assert_near(logits, reference(model, inputs, kept, 2, answer + 8, tokens)[:, -3:])


def test_a_filled_cache_and_all_ids():
    """A prompt run by hand, then `generate` with what it needs: its ids and one more."""
    model = shared("llava")
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4)) as pruned, torch.no_grad():
        whole, out = generate(model, inputs, steps=4)
        first = model(**inputs, use_cache=True)
        ids = torch.cat([inputs["input_ids"], first.logits[:, -1:].argmax(-1)], dim=1)
        follow = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: first[CACHE]}
        logits, more = generate(model, follow, steps=3)
        assert pruned.report.kept_tokens == [4]
    assert torch.equal(more.sequences, out.sequences)
    assert_near(logits, whole[:, 1:])


@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl", "gemma3", "idefics3"])
def test_a_prefix_cache_under_a_method_that_does_not_ask(family):
    """The image once, and a question after another on copies of its cache."""
    model = shared(family)
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    end = end_of_image(model, inputs)
    with vlmprune.wrap(model, vlmprune.DivPrune(keep=0.4, layer=1)) as pruned, torch.no_grad():
        prefix = DynamicCache(config=model.config.get_text_config())
        model(**first_piece(inputs, end), **{CACHE: prefix}, use_cache=True)
        kept, answers = pruned.report.kept, []
        for cut in (3, 7):
            ids = inputs["input_ids"][:, : end + cut]
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: copy.deepcopy(prefix)}
            answers.append((cut, *generate(model, given, steps=3)))
    for cut, logits, out in answers:
        asked = of_ids(inputs, lambda ids, cut=cut: ids[: end + cut])
        assert_near(logits, reference(model, asked, kept, 1, 3, out.sequences[:, -3:]))


def echoing(inputs: Inputs) -> Inputs:
    """A prompt whose end says three times the same: candidates are found before anything was generated."""
    return of_ids(inputs, lambda ids: torch.cat([ids, ids[-5:], ids[-5:]]))


@pytest.mark.parametrize("name", ["planted", *ASKING])
@pytest.mark.parametrize("layer", [0, 2])
def test_candidates_behind_the_prompt_are_no_part_of_it(layer, name):
    model = shared("llava")
    inputs = echoing(row(make_inputs(model, text_lengths=TEXTS), 0))
    method = Planted(plan=((0, 3, 4),), layer=layer) if name == "planted" else ASKING[name]
    with vlmprune.wrap(model, method) as pruned:
        greedy, _ = generate(model, inputs, steps=6)
        kept = pruned.report.kept
        logits, _ = generate(model, inputs, steps=6, prompt_lookup_num_tokens=3)
        assert torch.equal(pruned.report.kept[0], kept[0])
    assert_near(logits, greedy)


# transformers' own PaliGemma and Mllama cannot check candidates: logits are off by 4.1, and an error of sizes.
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("paligemma", "mllama")])
def test_candidates_in_every_family(family):
    model = shared(family)
    inputs = echoing(row(make_inputs(model, text_lengths=TEXTS), 0))
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4)):
        greedy, _ = generate(model, inputs, steps=6)
        logits, _ = generate(model, inputs, steps=6, prompt_lookup_num_tokens=3)
    assert_near(logits, greedy)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_an_assistant(family):
    model, assistant = shared(family), build(family, seed=0)
    inputs = row(make_inputs(model, text_lengths=TEXTS), 0)
    with vlmprune.wrap(model, vlmprune.FastV(keep=0.4)):
        greedy, _ = generate(model, inputs, steps=6)
        logits, _ = generate(model, inputs, steps=6, assistant_model=assistant)
    assert_near(logits, greedy)
    assert len(visual_slots(model, inputs)) == 1
