"""The ways in which pruning inside transformers 5 goes wrong, each with the cure taken away in the test itself.

A test here shows two things: with the package as it is the logits are those of the masked twin, and without the one
cure they are far off (or the forward breaks), so the cure cannot be lost unnoticed.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache, LogitsProcessor
from transformers.masking_utils import create_causal_mask, find_packed_sequence_indices

import vlmprune
from tests.support.grid import grid
from tests.support.planted import Plan, Planted, counts
from tests.support.reference import language_model
from tests.support.running import assert_near, generate, plan_of, reference, shared
from tests.support.tiny_families import FAMILIES, IMAGE, Inputs, build, make_inputs, row
from tests.support.upstream import VERSION
from vlmprune.attention.masks import Sizes, own_mask
from vlmprune.flow.compact import compaction
from vlmprune.hf import cache_state
from vlmprune.hf.cache_state import later_valid
from vlmprune.hf.compatibility import CACHE
from vlmprune.inputs.chat import prepare
from vlmprune.ops.gather import gather_positions, gather_rows
from vlmprune.runtime import locate
from vlmprune.runtime.base_forward import BaseForward
from vlmprune.runtime.decode import Decode
from vlmprune.runtime.prefill import Prefill
from vlmprune.runtime.session import Session
from vlmprune.tiny import example

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

STEPS = 5
NEAR = 1e-4  # logits are of size 5, so sums in another order explain 1e-5
FAR_OFF = 0.05


def error_of(call: Callable[[], Tensor], model: Any, inputs: Inputs, plan: Plan, layer: int, tokens: Tensor) -> float:
    """How far the logits that `call` gives are from the masked twin's along `tokens`; infinite if it breaks."""
    try:
        logits = call()
    except (RuntimeError, IndexError, vlmprune.VlmpruneError):
        return float("inf")
    return float((logits - reference(model, inputs, plan, layer, logits.shape[1], tokens)).abs().max())


def decoding_error(model: Any, inputs: Inputs, layer: int, kind: str) -> float:
    """The same for greedy decoding of a wrapped model."""
    plan = plan_of(model, inputs, kind)
    try:
        with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
            logits, out = generate(model, inputs, steps=STEPS)
    except (RuntimeError, IndexError):
        return float("inf")
    return error_of(lambda: logits, model, inputs, plan, layer, out.sequences[:, -STEPS:])


# --- 1: generate() runs the vision tower before the base model's forward --------------------------------------------


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_1_grids_are_captured_at_the_tower(family, monkeypatch):
    model = shared(family)
    inputs = make_inputs(model)
    seen: list[dict[str, Any]] = []
    hook = model.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.5)) as pruned:
        generate(model, inputs, steps=2)
        assert pruned.report.visual_tokens == counts(model, inputs)
        assert all(spans[0].grid[1] > 1 for spans in pruned.report.images)
    hook.remove()
    size = "image_grid_thw" if family.startswith("qwen") else "image_sizes"
    if Version("5.18") <= VERSION:  # older ones hand pixels and sizes to the base model
        assert seen[0].get("mm_encoder_outputs")
        assert seen[0].get("pixel_values") is None
        if not family.startswith("qwen"):
            assert seen[0].get(size) is None

    # Neither the tower's arguments nor those of the base model: nothing is left to know the grid from.
    monkeypatch.setattr(Session, "_features", lambda self, kind, original, *args, **kwargs: original(*args, **kwargs))
    monkeypatch.setattr(locate, "media_metadata", lambda arguments: {})
    with (
        vlmprune.wrap(model, vlmprune.Uniform(keep=0.5)),
        pytest.raises(vlmprune.VlmpruneError, match=f"without {size}"),
    ):
        generate(model, inputs, steps=2)


# --- 2: the decode mask is built once, from the first full-attention layer of the cache -----------------------------


@grid(
    family=["llava", "qwen2_vl", "idefics3", "paligemma"],
    attn=["sdpa", "eager"],
    place=[(1, "equal"), (1, "ragged"), (0, "ragged")],
)
def test_2_decode_masks_are_replaced(family, attn, place, monkeypatch):
    """k >= 1 breaks on sizes without the cure; ragged counts at k = 0 are silently wrong."""
    layer, kind = place
    model = shared(family, attn)
    inputs = make_inputs(model)
    assert decoding_error(model, inputs, layer, kind) < NEAR
    monkeypatch.setattr(Decode, "enter", lambda self, i, args, kwargs: None)
    assert decoding_error(model, inputs, layer, kind) > FAR_OFF


def test_2_cross_attention_masks_are_cut_at_every_step(monkeypatch):
    model = shared("mllama")
    inputs = make_inputs(model)
    assert decoding_error(model, inputs, 1, "ragged") < NEAR
    monkeypatch.setattr(Decode, "enter", lambda self, i, args, kwargs: None)
    assert decoding_error(model, inputs, 1, "ragged") > FAR_OFF


@pytest.mark.parametrize("layer", [0, 1])
def test_2_sliding_windows_count_original_positions(layer, monkeypatch):
    """In compact slots a window of the same width would reach further back."""
    model = shared("gemma3")
    inputs = make_inputs(model, text_lengths=(5, 6, 7))
    assert decoding_error(model, inputs, layer, "ragged") < NEAR

    def compact(
        self: Decode, i: int, state: Any, mask: Any, hidden: Tensor, sizes: Any, empty: bool, grouped: bool
    ) -> Any:
        before, length, offset = sizes
        valid = None if state is None else later_valid(state, self.mask, before + 1 - state.columns.shape[1])
        config, window = self.setup.text.config, self.setup.windows[i]
        return own_mask(config, hidden, valid, Sizes(length, offset, before), i, window)

    monkeypatch.setattr(Decode, "_cut", compact)
    assert decoding_error(model, inputs, layer, "ragged") > FAR_OFF


# --- 3: gaps in the position ids look like packed sequences --------------------------------------------------------


def test_3_gaps_in_position_ids_are_no_packed_sequences(monkeypatch):
    """With no mask and no cache transformers would build a block-diagonal mask from the gaps."""
    model = shared("llava")
    inputs = row(make_inputs(model), 1)
    plan = ((0, 4, 5, 8),)
    unmasked = {name: value for name, value in inputs.items() if name != "attention_mask"}

    def last_row() -> Tensor:
        with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
            return model(**unmasked, use_cache=False).logits[:, -1:]

    tokens = inputs["input_ids"][:, :0]
    assert error_of(last_row, model, inputs, plan, 1, tokens) < NEAR

    def built_from_positions(self: Prefill, i: int, stage: Any, chosen: Any, mask: Any, hidden: Tensor) -> Any:
        ids = next(value for (what, *_), (_, value) in self._gathered.items() if what == "ids")
        assert find_packed_sequence_indices(ids) is not None
        return create_causal_mask(
            config=self.setup.text.config,
            inputs_embeds=hidden,
            attention_mask=None,
            past_key_values=None,
            position_ids=ids,
        )

    monkeypatch.setattr(Prefill, "_mask", built_from_positions)
    assert error_of(last_row, model, inputs, plan, 1, tokens) > FAR_OFF


# --- 4 and 7: lengths come from the cache, and a cache pruned before layer 0 is physically shorter ------------------


def second_turn_error(model: Any, layer: int) -> float:
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    more = torch.randint(10, 99, (3, 4), generator=torch.Generator().manual_seed(3))
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        try:
            _, first = generate(model, inputs, steps=3)
            ids = torch.cat([first.sequences, more], dim=1)
            mask = torch.cat([inputs["attention_mask"], torch.ones(3, 7, dtype=torch.long)], dim=1)
            follow = {"input_ids": ids, "attention_mask": mask, "past_key_values": first.past_key_values}
            logits, second = generate(model, follow, steps=4)
        except (RuntimeError, IndexError, vlmprune.VlmpruneError):
            return float("inf")
    tokens = torch.cat([first.sequences[:, -3:], more, second.sequences[:, -4:]], dim=1)
    return float((logits - reference(model, inputs, plan, layer, 11, tokens)[:, -4:]).abs().max())


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "idefics3"])
def test_4_a_cache_pruned_before_layer_0_answers_its_logical_length(family, monkeypatch):
    model = shared(family)
    assert second_turn_error(model, 0) < NEAR
    monkeypatch.setitem(cache_state._ANSWERS, "get_seq_length", DynamicCache.get_seq_length)
    assert second_turn_error(model, 0) > FAR_OFF


@pytest.mark.parametrize("layer", [0, 1])
def test_4_only_this_cache_answers_so_and_only_until_it_is_reset(layer):
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "equal"), layer=layer)):
        cache = generate(model, inputs, steps=2)[1].past_key_values
    names = {"get_seq_length", "get_mask_sizes", "reset"}
    assert names <= vars(cache).keys()
    assert [cache.get_seq_length(i) for i in range(4)] == [inputs["input_ids"].shape[1] + 1] * 4
    assert not names & vars(DynamicCache(config=model.config)).keys()
    cache.reset()  # as `generate` does with a static cache that it uses again, before any hook of ours runs
    assert not [name for name in vars(cache) if name in names or "vlmprune" in name]
    fresh = DynamicCache(config=model.config)
    with torch.no_grad():
        again, wanted = (model(**inputs, **{CACHE: one}).logits for one in (cache, fresh))
    assert torch.equal(again, wanted)


def test_7_no_cache_position_and_masks_are_sized_for_the_whole_prompt(monkeypatch):
    model = shared("llava")
    assert "cache_position" not in inspect.signature(language_model(model).layers[0].forward).parameters
    assert second_turn_error(model, 0) < NEAR
    # Several rows at once: placed by the logical length in a mask of the physical one they see what is not there.
    monkeypatch.setitem(cache_state._ANSWERS, "get_mask_sizes", cache_state.physical_sizes)
    assert second_turn_error(model, 0) > FAR_OFF


# --- 5: a model can generate the image token's id -----------------------------------------------------------------


class ImageTokenAt(LogitsProcessor):
    """Makes the model say the image token at one length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == self.length:
            scores = torch.full_like(scores, float("-inf"))
            scores[:, IMAGE] = 0.0
        return scores


@grid(family=[f for f in FAMILIES if f != "mllama"], layer=[0, 1])
def test_5_a_generated_image_token_is_no_prompt(family, layer, monkeypatch):
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    processors = [ImageTokenAt(inputs["input_ids"].shape[1] + 1)]

    def decode() -> tuple[Tensor, Tensor]:
        with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
            logits, out = generate(model, inputs, steps=STEPS, logits_processor=processors)
        return logits, out.sequences[:, -STEPS:]

    logits, tokens = decode()
    assert (tokens[:, 1] == IMAGE).all()
    assert_near(logits, reference(model, inputs, plan, layer, STEPS, tokens))

    # The cure: the state hangs on the cache. Guessing "a prompt has image tokens" instead:
    begin = Session._begin_base

    def guess(self: Session, args: Any, kwargs: dict[str, Any]) -> None:
        begin(self, args, kwargs)
        if (self.calls.now.arguments["input_ids"] == IMAGE).any():
            self.calls.now.forward = None

    monkeypatch.setattr(Session, "_begin_base", guess)
    assert error_of(lambda: decode()[0], model, inputs, plan, layer, tokens) > FAR_OFF


def test_5_the_state_dies_with_its_cache():
    model = shared("llava")
    inputs = make_inputs(model)
    with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "ragged"))):
        cache = DynamicCache(config=model.config)
        model(**inputs, past_key_values=cache)
        assert cache_state.recall(cache) is not None
        gone = weakref.ref(cache)
        del cache
        gc.collect()
        assert gone() is None


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "var", "act", "fastv and var", "sgl"])
def test_5_no_method_keeps_a_cache_alive(method):
    large, small, processor = vlmprune.load_tiny()
    one = {
        "var": vlmprune.VAR(),
        "act": vlmprune.ACT(),
        "fastv and var": [vlmprune.FastV(), vlmprune.VAR()],
        "sgl": vlmprune.SGL(small),
    }.get(method, method)
    inputs = prepare(processor, *example())
    with vlmprune.wrap(large, one, processor=processor), torch.no_grad():
        prompt = large(**inputs)
        step = large(input_ids=torch.tensor([[20]]), past_key_values=prompt.past_key_values)
        gone = weakref.ref(step.past_key_values), weakref.ref(step.past_key_values.layers[2].keys)
        del prompt, step
        gc.collect()
        assert [kept() for kept in gone] == [None, None]


# --- 6: embeddings without ids, labels, hidden states ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_6_embeddings_without_ids_raise(family):
    model = shared(family)
    inputs = make_inputs(model)
    embeddings = language_model(model).get_input_embeddings()(inputs.pop("input_ids"))
    with (
        vlmprune.wrap(model, "random", keep=0.5),
        pytest.raises(vlmprune.VlmpruneError, match="inputs_embeds without input_ids"),
    ):
        model(**inputs, inputs_embeds=embeddings)


def test_6_labels_are_gathered_with_the_rows(monkeypatch):
    model = shared("llava")
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "equal")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)):
        assert torch.isfinite(model(**inputs, labels=labels).loss)
    monkeypatch.setattr(Session, "_enter_model", lambda self, args, kwargs: (None, args, kwargs))
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)), pytest.raises(ValueError, match="batch_size"):
        model(**inputs, labels=labels)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_6_hidden_states_have_the_lengths_the_report_says(family):
    model = shared(family)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "equal"), layer=2)) as pruned:
        states = model(**inputs, output_hidden_states=True).hidden_states
        lengths = pruned.report.layer_lengths
    assert [len(state[0]) for state in states[1:]] == lengths
    assert lengths[1] > lengths[2]


# --- 8: pre-hooks run before accelerate moves tensors ----------------------------------------------------------------


def test_8_indices_go_to_the_device_of_each_tensor():
    """A tensor still on another device is gathered there; plain gathering refuses to mix devices.

    Fake tensors know their device, and which may meet, without the hardware.
    """
    index = compaction(torch.tensor([[True, False, True, True], [True, True, True, False]])).index
    with FakeTensorMode(allow_non_fake_inputs=True):
        states = torch.empty(2, 4, 8, device="cuda")
        ids = torch.empty(2, 4, dtype=torch.long, device="cuda")
        assert gather_rows(states, index).device == states.device
        assert gather_positions(ids, index).device == ids.device
        with pytest.raises(RuntimeError, match="device"):
            torch.gather(ids, 1, index)


# --- 9: LlavaNext with cpu_offload fails in generate() without us too -----------------------------------------------


def test_9_llava_next_offloaded_fails_the_same_with_and_without_us():
    from accelerate import cpu_offload

    model = build("llava_next")
    inputs = make_inputs(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    try:
        generate(model, inputs, steps=2)
    except (RuntimeError, NotImplementedError) as error:
        plain = error
    else:  # transformers 5.14
        with vlmprune.wrap(model, "none"):
            generate(model, inputs, steps=2)
        return
    with vlmprune.wrap(model, "random", keep=0.5), pytest.raises(type(plain)) as wrapped:
        generate(model, inputs, steps=2)
    assert str(wrapped.value) == str(plain)


# --- 10: what else must match (beams, static caches, prompt lookup and the rest are in test_generation.py) ----------


@pytest.mark.parametrize("family", FAMILIES)
def test_10_a_text_only_prompt_after_an_image_prompt(family):
    """It runs unpruned, bit by bit, and the report says that there was no image."""
    model = shared(family)
    inputs = make_inputs(model)
    text = {"input_ids": torch.randint(10, 99, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    plain, _ = generate(model, text, steps=3)
    with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "ragged"), layer=1)) as pruned:
        generate(model, inputs, steps=2)
        logits, _ = generate(model, text, steps=3)
        assert pruned.report.visual_tokens == [0, 0]
        before = generate(model, inputs, steps=2)[0]
    with vlmprune.wrap(model, Planted(plan=plan_of(model, inputs, "ragged"), layer=1)):
        assert torch.equal(generate(model, inputs, steps=2)[0], before)
    assert torch.equal(logits, plain)


# --- the mechanism: what is passed where ------------------------------------------------------------------------------


def test_llava_next_passes_its_ids_by_position():
    """Looked up by keyword they would be missed, and pruning silently skipped."""
    model = shared("llava_next")
    inputs = make_inputs(model)
    positional: list[bool] = []
    hook = model.model.register_forward_pre_hook(lambda module, args: positional.append(len(args) == 1))
    with vlmprune.wrap(model, "random", keep=0.5) as pruned:
        model(**inputs)
        assert all(k < v for k, v in zip(pruned.report.kept_tokens, pruned.report.visual_tokens, strict=True))
    hook.remove()
    assert positional == [True]


@pytest.mark.parametrize("layer", [0, 1])
def test_deepstack_is_added_by_us(layer, monkeypatch):
    """The language model adds its features at the places of the unpruned prompt, which are gone by then."""
    model = shared("qwen3_vl")
    inputs = make_inputs(model)
    assert decoding_error(model, inputs, layer, "ragged") < NEAR
    monkeypatch.setattr(BaseForward, "leave_layer", lambda self, *args: None)
    assert decoding_error(model, inputs, layer, "ragged") > FAR_OFF
