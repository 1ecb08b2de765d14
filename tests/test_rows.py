"""Which rows of logits come back: `logits_to_keep` counts positions of `input_ids`, and `rows` says what came."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.support.planted import Plan, Planted
from tests.support.reference import all_logits, visual_slots
from tests.support.running import assert_near, plan_of, shared
from tests.support.tiny_families import FAMILIES, Inputs, build, make_inputs, padded, row

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LAYER = 1
ROWS = [f for f in FAMILIES if f != "mllama"]  # whose visual tokens are rows of the sequence


def prompt(family: str, side: str = "left") -> tuple[Any, Inputs, Plan, Tensor]:
    """A model, its batch, a plan, and the masked twin's logits at every position."""
    model = shared(family)
    inputs = padded(make_inputs(model), side)
    plan = plan_of(model, inputs, "ragged")
    return model, inputs, plan, all_logits(model, inputs, plan, LAYER)


def positions_left(model: Any, inputs: Inputs, plan: Plan) -> list[list[int]]:
    left = []
    for i, slots in enumerate(visual_slots(model, inputs)):
        gone = (
            set() if model.config.model_type == "mllama" else set(slots.tolist()) - set(slots[list(plan[i])].tolist())
        )
        left.append([p for p in inputs["attention_mask"][i].nonzero()[:, 0].tolist() if p not in gone])
    return left


@pytest.mark.parametrize("side", ["left", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_say_what_the_logits_are(family, side):
    model, inputs, plan, full = prompt(family, side)
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)) as pruned, torch.no_grad():
        out, base = model(**inputs), model.base_model(**inputs)
        report = pruned.report
    assert [rows.tolist() for rows in report.rows] == positions_left(model, inputs, plan)
    assert json.loads(json.dumps(report.to_dict()))["rows"] == positions_left(model, inputs, plan)
    if family != "mllama":
        assert [rows.tolist() for rows in base.rows] == positions_left(model, inputs, plan)
    for i, rows in enumerate(out.rows):
        real = inputs["attention_mask"][i, rows].bool()
        assert_near(out.logits[i, -len(rows) :][real], full[i, rows[real]])


@pytest.mark.parametrize("method", ["none", "fastv", vlmprune.VAR()])
def test_rows_of_a_prompt_of_which_nothing_is_dropped(method):
    model = build("llava", layers=6)
    inputs = make_inputs(model)
    with vlmprune.wrap(model, method) as pruned, torch.no_grad():
        text = {"input_ids": inputs["input_ids"][:, -4:], "attention_mask": inputs["attention_mask"][:, -4:]}
        out = model(**text)
        assert [rows.tolist() for rows in out.rows] == [[0, 1, 2, 3]] * 3
        assert [rows.tolist() for rows in pruned.report.rows] == [[0, 1, 2, 3]] * 3
        out = model(**inputs, logits_to_keep=2)
        assert [rows.tolist() for rows in out.rows] == [[inputs["input_ids"].shape[1] - n for n in (2, 1)]] * 3


def test_rows_of_beams_and_of_samples_that_exit():
    model = shared("llava")
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)) as pruned:
        model.generate(**inputs, num_beams=2, max_new_tokens=2)
        assert [rows.tolist() for rows in pruned.report.rows] == positions_left(model, inputs, plan)
    with vlmprune.wrap(model, vlmprune.SGL(guide=build("llava", seed=1), exit_at=0.0)) as pruned:
        model.generate(**inputs, max_new_tokens=2)
        assert [rows.tolist() for rows in pruned.report.rows] == [[], [], []]


def text_columns(inputs: Inputs, model: Any) -> Tensor:
    """Columns that hold text in every sample."""
    real = inputs["attention_mask"].bool() & (inputs["input_ids"] != model.config.image_token_id)
    return real.all(dim=0).nonzero()[:, 0]


@pytest.mark.parametrize("side", ["both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_asked_for(family, side):
    """In one order or another, once or twice, the same in every sample or each its own, or as a mask."""
    model, inputs, plan, full = prompt(family, side)
    length = inputs["input_ids"].shape[1]
    columns = text_columns(inputs, model)
    asked: list[Any] = [columns, columns.flip(0), columns[:1] - length]
    own = torch.stack([torch.tensor([left[0], left[-1]]) for left in positions_left(model, inputs, plan)])
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool).scatter(1, own, True)
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        for positions in asked:
            out = model(**inputs, logits_to_keep=positions)
            assert_near(out.logits, full[:, positions])
            assert all(torch.equal(rows, positions % length) for rows in out.rows)
        assert_near(
            model.forward(**inputs, logits_to_keep=own).logits, full.gather(1, own[..., None].expand(-1, -1, 128))
        )
        assert_near(model(**inputs, logits_to_keep=mask).logits, full[mask])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_columns(family):
    """An int counts columns as the caller wrote them."""
    model, inputs, plan, full = prompt(family)
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        for number in (1, 2):
            out = model(**inputs, logits_to_keep=number)
            assert_near(out.logits, full[:, -number:])
            assert [len(rows) for rows in out.rows] == [number] * 3


@pytest.mark.parametrize("family", ROWS)
def test_columns_of_padding_have_the_row_before(family):
    """So with right padding the last column is the row that predicts each prompt's next token."""
    model, inputs, plan, full = prompt(family, "right")
    last = inputs["attention_mask"].sum(dim=1) - 1
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        logits = model(**inputs, logits_to_keep=1).logits
    assert_near(logits[:, 0], full[torch.arange(3), last])


@pytest.mark.parametrize("family", ROWS)
def test_dropped_positions_raise(family):
    """Named one by one, or by a number of columns that reaches into the image."""
    model = shared(family)
    inputs = row(make_inputs(model), 0)
    slots = visual_slots(model, inputs)[0]
    reaching = inputs["input_ids"].shape[1] - int(slots[-2])
    with vlmprune.wrap(model, Planted(plan=((0,),), layer=LAYER)):
        for keep in (slots[1:2], slots[None, 2:4], reaching):
            with pytest.raises(vlmprune.VlmpruneError, match=r"position \d+ of sample 0.*was dropped.*report.rows"):
                model(**inputs, logits_to_keep=keep)


def test_positions_that_do_not_exist_raise():
    model, inputs, plan, _ = prompt("llava")
    with (
        vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)),
        pytest.raises(vlmprune.VlmpruneError, match="use 0 to"),
    ):
        model(**inputs, logits_to_keep=torch.tensor([500]))


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_in_training_the_last_columns_are_those_of_lined_up_logits(family):
    """As GRPO asks for them: padding on both sides, the answer's columns and one before."""
    model = build(family).train()
    inputs = padded(make_inputs(model, text_lengths=(9, 13, 11)), "both")
    plan = plan_of(model, inputs, "ragged")
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        whole = model(**inputs).logits
        for number in (4, 9):
            assert torch.equal(model(**inputs, logits_to_keep=number).logits, whole[:, -number:])


def test_labels_of_the_rows_asked_for():
    model, inputs, plan, full = prompt("llava", "right")
    labels = inputs["input_ids"][:, -3:].masked_fill(inputs["attention_mask"][:, -3:] == 0, -100)
    expected = torch.nn.functional.cross_entropy(
        full[:, -3:-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    with vlmprune.wrap(model, Planted(plan=plan, layer=LAYER)), torch.no_grad():
        assert_near(model(**inputs, logits_to_keep=3, labels=labels).loss, expected)
        with pytest.raises(vlmprune.VlmpruneError, match="leave logits_to_keep out"):
            model(**inputs, logits_to_keep=3, labels=inputs["input_ids"])
