"""Samples share their prompt's prefill, and say what they would say had each run it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

import vlmprune
from demos.tiny_vlm.scenes import make_scene
from tests.support.grid import grid
from tests.support.running import shared
from tests.support.sinks import shared_planted
from tests.support.tiny_families import FAMILIES, IMAGE, VIDEO, make_inputs
from vlmprune import VlmpruneError
from vlmprune.captioner import PatchCaptioner, VisionModel
from vlmprune.captioner.prompts import BUNDLED
from vlmprune.captioner.sampling import SeededSampler, SharedPrefill

SAMPLES, STEPS = 3, 6
# Hot, so that samples part at once, and a token drawn from wrong logits shows.
HEAT = 3.0


def sampled(model: Any, inputs: dict[str, Tensor], decoding: Any = None, **options: Any) -> Tensor:
    """New tokens [B * k, steps]: as `SharedPrefill` decodes, or as transformers does without it."""
    rows = len(inputs["input_ids"]) * SAMPLES
    sampler = LogitsProcessorList([SeededSampler(range(rows), HEAT)])
    # Without a cache, a placeholder that was drawn would ask for another image.
    own = {"max_new_tokens": STEPS, "do_sample": True, "top_k": 0, "suppress_tokens": [IMAGE, VIDEO]}
    options = {**own, "logits_processor": sampler, **options}
    how = {"num_return_sequences": SAMPLES} if decoding is None else {"custom_generate": decoding}
    out: Tensor = model.generate(**inputs, **options, **how)
    return out[:, inputs["input_ids"].shape[1] :]


@grid(family=FAMILIES, method=[None, vlmprune.FastV(keep=0.5), vlmprune.Random(keep=0.5)])
def test_every_family_shares_the_prefill(family: str, method: Any) -> None:
    """The same tokens as transformers' own loop, which runs every sample's prompt; and a third of its rows."""
    model, decoding = shared(family), SharedPrefill(SAMPLES)
    inputs = make_inputs(model)
    if method is None:
        assert torch.equal(sampled(model, inputs, decoding), sampled(model, inputs))
    else:
        with vlmprune.wrap(model, method) as pruned:
            expected, flops = sampled(model, inputs), pruned.report.prefill_flops
            assert torch.equal(sampled(model, inputs, decoding), expected)
            assert pruned.report.prefill_flops == flops  # of a report: the prompts', not their repetitions'
    assert decoding.shared


@pytest.mark.parametrize("method", [vlmprune.VAR(), vlmprune.ACT(threshold=0.08)], ids=["var", "act"])
def test_interventions_follow_the_samples(method: Any) -> None:
    model, decoding = shared_planted("llava"), SharedPrefill(SAMPLES)
    inputs = make_inputs(model, text_lengths=(12, 17, 14))
    with vlmprune.wrap(model, [vlmprune.FastV(keep=0.5, layer=3), method]):
        assert torch.equal(sampled(model, inputs, decoding), sampled(model, inputs))


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_caches_that_cannot_be_repeated(options: dict[str, Any]) -> None:
    model, decoding = shared("llava"), SharedPrefill(SAMPLES)
    inputs = make_inputs(model)
    expected = sampled(model, inputs)
    assert torch.equal(sampled(model, inputs, decoding, disable_compile=True, **options), expected)
    assert not decoding.shared


@pytest.mark.parametrize("settings", [{}, {"cache_implementation": "static"}], ids=str)
def test_a_models_own_generation_settings_change_no_sample(settings: dict[str, Any]) -> None:
    _, small, processor = vlmprune.load_tiny()
    vision, image = VisionModel(small, processor), make_scene(3, "test").image()
    options: dict[str, Any] = {"seeds": [[1, 2]], "temperature": 0.7, "max_new_tokens": 4}
    expected = vision.describe([image], BUNDLED.describe, **options)
    small.generation_config.update(return_dict_in_generate=True, **settings)
    assert vision.describe([image], BUNDLED.describe, **options) == expected


def test_rows_that_end_early_are_filled_up() -> None:
    model = shared("llava")
    inputs = make_inputs(model)
    ends = sampled(model, inputs)[0, 1].item()
    settings = {"eos_token_id": ends, "pad_token_id": 0}
    out = sampled(model, inputs, SharedPrefill(SAMPLES), **settings)
    assert torch.equal(out, sampled(model, inputs, **settings))
    assert not out[0, 2:].any()


def test_the_prompt_runs_once() -> None:
    large, _, processor = vlmprune.load_tiny()
    rows: list[int] = []
    handle = large.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["inputs_embeds"].shape[0] * kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    view = make_scene(3, "validation").image()
    vision = VisionModel(large, processor)
    vision.describe([view, view], BUNDLED.describe, seeds=[[1, 2, 3], [4, 5, 6]], temperature=0.7, max_new_tokens=4)
    handle.remove()
    prompt, *steps = rows
    assert prompt > 2 * 196
    assert prompt < 3 * 196
    assert steps == [6, 6, 6]
    assert (vision.cost.visual_tokens, vision.cost.images_encoded) == (2 * 196, 2)


def test_a_guide_ranks_by_its_whole_answer() -> None:
    """As it does without sharing: it answers with as many tokens as were asked for."""
    large, small, processor = vlmprune.load_tiny()
    view = make_scene(3, "validation").image()
    options: dict[str, Any] = {"seeds": [[1, 2]], "temperature": 0.7, "max_new_tokens": 6}
    with vlmprune.wrap(large, vlmprune.SGL(guide=small, keep=0.18), processor=processor) as pruned:
        VisionModel(pruned).describe([view], BUNDLED.describe, **options)
        sampled_kept = pruned.report.kept[0]
        pruned.ask(view, BUNDLED.describe, max_new_tokens=6)
        assert torch.equal(pruned.report.kept[0], sampled_kept)


def test_exits_are_refused() -> None:
    large, small, processor = vlmprune.load_tiny()
    with (
        vlmprune.wrap(large, vlmprune.SGL(guide=small, exit_at=0.9), processor=processor) as pruned,
        pytest.raises(VlmpruneError, match=r"exit_at=0\.9.*exit_at=None"),
    ):
        PatchCaptioner(pruned)
