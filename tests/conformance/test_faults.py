"""Faults planted in the package: each is found, in fp32 and bf16, and its step and layer are named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vlmprune
from tests.support.grid import few
from tests.support.own_model import Memory, own_inputs, own_model
from tests.support.tiny_families import build, make_inputs
from vlmprune.conformance import check as checking
from vlmprune.conformance import reference
from vlmprune.conformance.kinds import Kind
from vlmprune.runtime import decode, prefill
from vlmprune.runtime.base_forward import BaseForward
from vlmprune.runtime.decode import Decode
from vlmprune.runtime.prefill import Prefill
from vlmprune.runtime.session import Session

take_mask = decode.take_mask


def shows_all(mask, rows, columns, hides, group=1):
    """A mask that knows what is there, and no window."""
    seen = (columns >= 0)[:, None, None].expand(-1, 1, 1 if rows is None else rows.shape[1], -1)
    return seen if rows is None else seen & (columns[:, None, None] <= rows[:, None, :, None])


def shows_fillers(mask, rows, columns, hides, group=1):
    """A mask in which nothing hides the padding in front of samples that keep less."""
    taken = take_mask(mask, rows, columns, hides, group)
    return taken | (columns < 0)[:, None, None]


def window_forgotten(patch):
    patch(decode, "take_mask", shows_all)
    return build("gemma3"), "step 1 (0 = prompt), layer 0 (Gemma3DecoderLayer, window of 8)"


def positions_not_gathered(patch):
    patch(Prefill, "_cos_sin", lambda self, stage, chosen, kwargs, hidden: tuple(
        part[:, : hidden.shape[1]] for part in kwargs["position_embeddings"]
    ))  # fmt: skip
    return build("llava"), "step 0 (0 = prompt), layer 0 (LlamaDecoderLayer, full)"


def column_short(patch):
    own = Decode._mask

    def short(self, *given):
        mask = own(self, *given)
        return nn.functional.pad(mask[..., :-1], (1, 0), value=True)

    patch(Decode, "_mask", short)
    return build("llava"), "step 1 (0 = prompt), layer 0 (LlamaDecoderLayer, full)"


def fillers_unmasked(patch):
    patch(prefill, "take_mask", shows_fillers)
    patch(decode, "take_mask", shows_fillers)
    return build("llava"), "step 0 (0 = prompt), layer 0 (LlamaDecoderLayer, full)"


def recurrence_as_attention(patch):
    own = Prefill._mask

    def of_attention(self, i, stage, chosen, mask, hidden):
        masks = isinstance(self.setup.text.layers[i].self_attn, Memory)
        return own(self, i, stage, chosen, None if masks else mask, hidden)

    patch(Prefill, "_mask", of_attention)
    return own_model(remembering=(1,)), "step 0 (0 = prompt), layer 1 (Layer, recurrent)"


def reference_without_recurrence(patch):
    without = reference.without

    def hidden(mask, dropped, rows, total):
        if mask.dim() == 4:
            return without(mask, dropped, rows, total)
        return mask * ~nn.functional.pad(dropped, (0, mask.shape[1] - dropped.shape[1]))

    patch(checking, "_kinds", lambda run: [Kind(True, "full")] * len(run.layers))
    patch(reference, "without", hidden)
    return own_model(remembering=(1,)), "step 0 (0 = prompt), layer 1 (Layer, full)"


FAULTS = (
    window_forgotten,
    positions_not_gathered,
    column_short,
    fillers_unmasked,
    recurrence_as_attention,
    reference_without_recurrence,
)


@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16], 2))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_its_layer_named(fault, dtype, monkeypatch):
    with monkeypatch.context() as patched:
        model, where = fault(patched.setattr)
        model = model.to(dtype)
        inputs = own_inputs(model) if model.config.model_type == "own_vlm" else make_inputs(model, images=(1, 2, 1))
        found = vlmprune.check(model, inputs, [0])
    assert not found.ok
    assert found.first_difference == where
    assert vlmprune.check(model, inputs, [0]).ok  # without the fault


@pytest.mark.parametrize(
    ("part", "name", "found"),
    [
        (BaseForward, "enter_layer", "nothing was dropped"),
        (Prefill, "enter", "nothing was dropped"),
        (Session, "attach", "nothing was dropped"),
        (Decode, "enter", "the pruned run stops: RuntimeError"),
    ],
)
def test_pruning_that_does_not_happen_or_stops_is_not_exact(part, name, found, monkeypatch):
    model = build("llava")
    monkeypatch.setattr(part, name, lambda *given: None)
    report = vlmprune.check(model, make_inputs(model, images=(1, 2, 1)), [0])
    assert not report.ok
    assert report.first_difference.startswith(found)
    assert "NOT exact" in str(report)
