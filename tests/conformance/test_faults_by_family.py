"""Faults planted in what is of one kind of family only: each is found, and the first place where runs part is named."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.support.generic import build_generic, make_generic_inputs
from tests.support.grid import few
from tests.support.tiny_families import FAMILIES, build, make_inputs
from vlmprune.flow.compact import Compaction
from vlmprune.runtime import cross_prefill, decide, decode, prefill
from vlmprune.runtime.decode import Decode
from vlmprune.runtime.deepstack import DeepStack
from vlmprune.runtime.prefill import Prefill

OWN = {
    (module, name): getattr(module, name)
    for module, name in (
        (Prefill, "_along"), (Prefill, "_compact"), (DeepStack, "add"), (Decode, "_cut"), (decide, "compaction"),
        (decode, "physical_sizes"), (prefill, "take_mask"),
    )
}  # fmt: skip


def first_rows(of):
    """What a layer is given for each token is taken of the first rows instead of the kept ones, where `of(name, value)`
    says so."""

    def along(self, name, stage, chosen, value):
        if isinstance(value, torch.Tensor) and of(name, value):
            return value[:, : chosen.index.shape[1]]
        return OWN[Prefill, "_along"](self, name, stage, chosen, value)

    return lambda patch: patch(Prefill, "_along", along)


per_layer_inputs_not_gathered = first_rows(lambda name, value: value.dim() == 3)
token_types_not_gathered = first_rows(lambda name, value: "type" in name)


def window_wider_by_one(patch):
    def cut(self, i, *given):
        mask = OWN[Decode, "_cut"](self, i, *given)
        if self.setup.windows[i] is None:
            return mask
        return mask.scatter(-1, (mask.int().argmax(-1, keepdim=True) - 1).clamp(min=0), True)

    patch(Decode, "_cut", cut)


def cache_let_go_one_less(patch):
    def sizes(cache, queries, layer):
        length, offset = OWN[decode, "physical_sizes"](cache, queries, layer)
        return length, max(0, offset - 1)

    patch(decode, "physical_sizes", sizes)


def features_added_to_the_next_rows(patch):
    def add(self, layer, hidden, stage):
        pruned = stage is not None and stage.chosen is not None
        levels = {i: level.roll(1, 0) for i, level in self.levels.items()} if pruned else self.levels
        return OWN[DeepStack, "add"](DeepStack(self.visual, levels, self.before), layer, hidden, stage)

    patch(DeepStack, "add", add)


def fillers_enter_the_state(patch):
    patch(Prefill, "_row_mask", lambda self, stage, chosen, mask: None)


def dropped_keys_stay(module):
    return lambda patch: patch(module, "still_seen", lambda columns, left, length: columns)


def kept_rows_out_of_order(patch):
    def shuffled(keep):
        made = OWN[decide, "compaction"](keep)
        index = made.index.clone()
        index[:, [-9, -6]] = index[:, [-6, -9]]
        return Compaction(index, made.real, made.ragged)

    patch(decide, "compaction", shuffled)


def states_out_of_order(patch):
    def compacted(self, *given):
        states = OWN[Prefill, "_compact"](self, *given).clone()
        states[..., [-9, -6], :] = states[..., [-6, -9], :]
        return states

    patch(Prefill, "_compact", compacted)


def images_seen_backwards_only(patch):
    def causal(*given):
        mask = OWN[prefill, "take_mask"](*given)
        rows, columns = mask.shape[-2:]
        return mask & (torch.arange(columns) <= torch.arange(columns - rows, columns)[:, None])

    patch(prefill, "take_mask", causal)


def positions_of_steps_counted_anew(patch):
    own = Decode.enter

    def enter(self, i, args, kwargs):
        args, kwargs = own(self, i, args, kwargs) or (args, kwargs)
        gone = self.state.length - (self.state.columns >= 0).sum(1, keepdim=True)
        angle = (gone * self.setup.text.rotary_emb.inv_freq).repeat(1, 2)[:, None]
        cos, sin = kwargs["position_embeddings"]
        turned = cos * angle.cos() + sin * angle.sin(), sin * angle.cos() - cos * angle.sin()
        return args, {**kwargs, "position_embeddings": tuple(part.to(cos.dtype) for part in turned)}

    patch(Decode, "enter", enter)


def columns_of_fillers_seen(patch):
    def take(mask, rows, columns, hides):
        return OWN[prefill, "take_mask"](mask, rows, columns.clamp(min=0), False)

    patch(cross_prefill, "take_mask", take)


def columns_of_steps_out_of_order(patch):
    def take(mask, rows, columns, hides):
        return OWN[prefill, "take_mask"](mask, rows, columns.flip(1), hides)

    patch(decode, "take_mask", take)


FAULTS = [
    (per_layer_inputs_not_gathered, "gemma3n", 0, "step 0, layer 0 (Gemma3nTextDecoderLayer, window of 8)"),
    (per_layer_inputs_not_gathered, "gemma4", 0, "step 0, layer 0 (Gemma4TextDecoderLayer, window of 8)"),
    (window_wider_by_one, "gemma3", 0, "step 1, layer 0 (Gemma3DecoderLayer, window of 8)"),
    (window_wider_by_one, "llama4", 0, "step 1, layer 0 (Llama4TextDecoderLayer, chunk)"),
    (window_wider_by_one, "idefics2", 0, "step 1, layer 0 (MistralDecoderLayer, window of 8)"),
    (cache_let_go_one_less, "step3p7", 0, "step 1, layer 1 (Step3p7DecoderLayer, window of 8)"),
    (features_added_to_the_next_rows, "qwen3_vl_moe", 0,
     "step 0, what enters layer 1 (Qwen3VLMoeTextDecoderLayer, full)"),
    (features_added_to_the_next_rows, "granite4_vision", 1,
     "step 0, what enters layer 2 (Granite4VisionTextDecoderLayer, full)"),
    (fillers_enter_the_state, "qwen3_5", 0, "step 0, layer 0 (Qwen3_5DecoderLayer, recurrent)"),
    (fillers_enter_the_state, "lfm2_vl", 0, "step 0, layer 0 (Lfm2DecoderLayer, recurrent)"),
    (fillers_enter_the_state, "nemotron_h_omni", 1, "step 0, layer 2 (NemotronHBlock, recurrent)"),
    (dropped_keys_stay(decode), "gemma4", 3, "step 1, layer 5 (Gemma4TextDecoderLayer, full)"),
    (dropped_keys_stay(prefill), "gemma3n", 3, "step 0, layer 5 (Gemma3nTextDecoderLayer, full)"),
    (kept_rows_out_of_order, "lfm2_vl", 0, "step 0, what enters layer 0 (Lfm2DecoderLayer, recurrent)"),
    (states_out_of_order, "qwen2_5_vl", 1, "step 0, what enters layer 1 (Qwen2_5_VLDecoderLayer, full)"),
    (images_seen_backwards_only, "gemma3", 0, "step 0, layer 0 (Gemma3DecoderLayer, window of 8)"),
    (positions_of_steps_counted_anew, "glm4v", 0, "step 1, layer 0 (Glm4vTextDecoderLayer, full)"),
    (columns_of_fillers_seen, "mllama", 0, "step 0, layer 1 (MllamaCrossAttentionDecoderLayer, cross attention)"),
    (columns_of_steps_out_of_order, "mllama", 0, "step 1, layer 1 (MllamaCrossAttentionDecoderLayer, cross attention)"),
    (token_types_not_gathered, "ernie4_5_vl_moe", 0, "step 0, layer 1 (Ernie4_5_VLMoeDecoderLayer, full)"),
]  # fmt: skip
IN_BF16 = [row for row in FAULTS if row[1] not in ("llama4", "gemma3n", "ernie4_5_vl_moe") and row[2] != 3]


def found(fault, model_type, layer, dtype, monkeypatch):
    model = (build if model_type in FAMILIES else build_generic)(model_type).to(dtype)
    made = make_inputs(model, images=(1, 2, 1)) if model_type in FAMILIES else make_generic_inputs(model)
    with monkeypatch.context() as patched:
        fault(patched.setattr)
        return vlmprune.check(model, made, [layer])


@pytest.mark.parametrize(("fault", "model_type", "layer", "where"), few(FAULTS, 4))
def test_a_fault_of_one_kind_of_family_is_found_where_it_is(fault, model_type, layer, where, monkeypatch):
    report = found(fault, model_type, layer, torch.float32, monkeypatch)
    assert not report.ok
    assert report.first_difference.replace(" (0 = prompt)", "") == where


@pytest.mark.parametrize(("fault", "model_type", "layer", "where"), few(IN_BF16, 8))
def test_it_is_found_in_bf16(fault, model_type, layer, where, monkeypatch):
    """All but those that move logits less than rounding does in a tiny model (shared keys, expert choice)."""
    report = found(fault, model_type, layer, torch.bfloat16, monkeypatch)
    assert not report.ok
    assert report.first_difference.replace(" (0 = prompt)", "") == where
