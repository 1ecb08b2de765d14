"""A user's own method: the layers it names, the rows it reads by, and numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import vlmprune
from tests.support.running import shared
from tests.support.tiny_families import make_inputs
from tests.test_bad_input import sentence

GOOD = torch.tensor([0, 4])
MASK = torch.arange(9) % 4 == 0


def run(options: dict[str, Any] | None = None, family: str = "llava", **body: Any) -> list[list[int]]:
    """What three samples of 9 visual tokens keep, with a method of this body; equal scores keep the first."""

    def score(self: Any, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
        return [torch.zeros(layout.count) for layout in prompt.layouts]

    own = {"score": score} if "select" not in body and "score" not in body else {}
    model = shared(family)
    with vlmprune.wrap(model, type("Mine", (vlmprune.Pruner,), own | body)(**(options or {}))), torch.no_grad():
        return [kept.tolist() for kept in model(**make_inputs(model)).report.kept]


def returning(value: Any) -> Callable[..., Any]:
    return lambda *given: value


# -- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(1, 2), [1, 2], np.array([1, 2]), (np.int64(1), 2)], ids=repr)
def test_stages_that_are_layers(layers):
    assert run(stage_layers=returning(layers)) == [[0]] * 3  # a quarter of nine, and a quarter of two


@pytest.mark.parametrize(
    "layers",
    ["ab", 2, None, (), (2, 1), (1, 1), (1, 9), (-1,), (1.0,), (True,), (None,), (torch.tensor(1.5),)],
    ids=repr,
)
@pytest.mark.parametrize("when", ["wrapped", "prompted"])
def test_stages_that_are_none(layers, when):
    """Layers that do not exist pruned nothing, in silence."""

    def stage_layers(self: Any, depth: int, layouts: Any = None) -> Any:
        return layers if layouts is not None or when == "wrapped" else (1,)

    sentence(lambda: run(stage_layers=stage_layers), "Mine.stage_layers()", repr(layers)[:40], "0 to 3")


@pytest.mark.parametrize("name", ["layer_for", "layer_index"])
@pytest.mark.parametrize("layer", [1.0, 9, None, -1], ids=repr)
def test_a_layer_that_is_none(name, layer):
    sentence(lambda: run(**{name: returning(layer)}), "Mine.stage_layers()", repr(layer), "0 to 3")


def test_attention_of_other_layers_than_were_announced():
    """Which attention is read is known from the layers at wrap time."""

    def stage_layers(self: Any, depth: int, layouts: Any = None) -> Any:
        return (1,) if layouts is None else (2,)

    sentence(lambda: run(stage_layers=stage_layers, reads_attention=True), "Mine.stage_layers()", "(1,)", "(2,)")
    assert run(stage_layers=stage_layers) == [[0, 1]] * 3


# -- query positions --------------------------------------------------------------------------------------------------


def by_attention(self: Any, prompt: vlmprune.PruningContext) -> list[torch.Tensor]:
    assert prompt.attention is not None
    return [prompt.attention[i, layout.slots] for i, layout in enumerate(prompt.layouts)]


def read_by(positions: Any, family: str = "llava") -> list[list[int]]:
    call = positions if callable(positions) else returning(positions)
    return run({"layer": 2}, family, score=by_attention, query_positions=call, reads_attention=True)


@pytest.mark.parametrize(
    "positions",
    [
        [torch.tensor([15, 17])] * 3,
        [torch.tensor([15, 17], dtype=torch.int32)] * 3,
        [[15, 17]] * 3,
        torch.tensor([[15, 17]] * 3),
        [torch.isin(torch.arange(18), torch.tensor([15, 17]))] * 3,
    ],
    ids=["int64", "int32", "list", "one tensor", "masks"],
)
def test_query_positions_that_are_unambiguous(positions):
    model, eager = shared("llava"), shared("llava", "eager")
    inputs = make_inputs(model)
    assert inputs["input_ids"].shape[1] == 18
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions[1].mean(1)
    visual = inputs["input_ids"] == model.config.image_token_id
    wanted = [sorted((a[15] + a[17])[at].topk(2).indices.tolist()) for a, at in zip(maps, visual, strict=True)]
    assert read_by(positions) == wanted


@pytest.mark.parametrize(
    ("positions", "named"),
    [
        ("abc", "'abc'"),
        ([17], "1 entries for a batch of 3"),
        ([[17]] * 4, "4 entries for a batch of 3"),
        ([17, 17, 17], "17"),
        ([[]] * 3, "[]"),
        ([torch.tensor([17.0])] * 3, "float32 tensor of shape (1,)"),
        ([torch.tensor([[17]])] * 3, "shape (1, 1)"),
        ([[17], [-1], [17]], "[-1]"),
        ([[17], [18], [17]], "[18]"),
        ([[0], [17], [17]], "[0]"),  # padding, whose attention is NaN
        ([torch.ones(17, dtype=torch.bool)] * 3, "bool mask of 17"),
    ],
)
def test_query_positions_that_are_none(positions, named):
    sentence(lambda: read_by(positions), "Mine.query_positions()", named, "prompt.valid")


def test_query_positions_beside_cross_attention():
    """They were never asked there, and the last token read."""
    sentence(lambda: read_by([[5]] * 3, "mllama"), "Mine", "query_positions()", "'mllama'")


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float8_e4m3fn, torch.bfloat16], ids=str)
def test_scores_of_every_type_of_number(dtype):
    """Whole numbers without a sign were called NaN."""
    assert run(score=returning([torch.arange(9).to(dtype)] * 3)) == [[7, 8]] * 3
    assert run(score=returning(np.stack([np.arange(9)] * 3))) == [[7, 8]] * 3
    assert run(select=returning(np.array([[0, 4]] * 3))) == [[0, 4]] * 3


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"score": returning([torch.arange(9.0).to_sparse()] * 3)}, "sparse"),
        ({"select": returning([torch.tensor([0, 4]).to_sparse()] * 3)}, "sparse"),
        ({"select": returning({0: [0, 4]})}, "{0: [0, 4]}"),
        ({"score": returning(np.zeros((2, 9)))}, "2 entries for a batch of 3"),
        ({"score": returning([np.zeros((3, 3))] * 3)}, "float64 array of shape (3, 3)"),
    ],
)
def test_what_holds_no_numbers(body, named):
    sentence(lambda: run(**body), "Mine.", named)


@pytest.mark.parametrize(
    ("states", "named"),
    [
        (torch.full((2, 64), float("nan")), "NaN"),
        (torch.full((2, 64), float("inf")), "infinite"),
        (torch.zeros(2, 64, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 64, dtype=torch.long), "int64"),
    ],
    ids=["nan", "inf", "complex", "int"],
)
def test_merged_states_that_are_none(states, named):
    sentence(lambda: run(select=returning(vlmprune.Selection([GOOD] * 3, [states] * 3))), "Mine.select()", named)
