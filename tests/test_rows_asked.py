"""`logits_to_keep` in every form that transformers takes, and in those that it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vlmprune
from tests.support.planted import Planted
from tests.support.reference import all_logits
from tests.support.running import assert_near, plan_of, shared
from tests.support.tiny_families import make_inputs
from tests.test_bad_input import sentence

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FAMILIES = ("llava", "mllama")  # whose rows we take, and whose model takes them itself
LAST = {"llava": 17, "mllama": 9}  # text in every sample


def taken(logits: torch.Tensor, keep: Any) -> torch.Tensor:
    """What transformers 5.24 takes of logits [B, S, vocabulary]; older versions index with whatever they get."""
    if isinstance(keep, torch.Tensor) and keep.dim() == 2:
        return torch.take_along_dim(logits, keep[..., None], dim=1)
    return logits[:, keep]


@pytest.mark.parametrize(
    "form",
    [
        lambda at: torch.tensor(at),
        lambda at: np.int64(at),
        lambda at: slice(at - 1, at + 1),
        lambda at: [at, at - 1],
        lambda at: (at,),
        lambda at: np.array([at]),
        lambda at: range(at - 1, at + 1),
        lambda at: torch.tensor([at], dtype=torch.int32),
        lambda at: torch.tensor([[at]] * 3),
        lambda at: torch.tensor([[at - 1, at]]),
        lambda at: torch.arange(at + 1) == at,
        lambda at: [False] * at + [True],
    ],
    ids=["0-d", "numpy", "slice", "list", "tuple", "array", "range", "int32", "2-D", "one row", "mask",
         "bools"],
)  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_forms_that_transformers_takes(family, form):
    """The same shape, too: a single position without brackets drops its axis."""
    model = shared(family)
    inputs = make_inputs(model)
    plan = plan_of(model, inputs, "ragged")
    keep = form(LAST[family])
    try:
        wanted = taken(all_logits(model, inputs, plan, 1), keep)
    except (TypeError, IndexError):
        pytest.skip("not before vlmprune either")
    with vlmprune.wrap(model, Planted(plan=plan, layer=1)), torch.no_grad():
        assert_near(model(**inputs, logits_to_keep=keep).logits, wanted)
    with vlmprune.wrap(model, "none"), torch.no_grad():
        assert model(**inputs, logits_to_keep=keep).logits.shape == wanted.shape


@pytest.mark.parametrize(
    ("keep", "named"),
    [
        (1.0, "1.0"),
        ("last", "'last'"),
        ({1}, "{1}"),
        (torch.tensor([1.0]), "float32 tensor of shape (1,)"),
        (torch.tensor([18]), "[18]"),
        (torch.tensor([-19]), "[-19]"),
        (torch.tensor([[18]] * 3), "[18]"),
        (torch.tensor([[1]] * 2), "[[1], [1]]"),
        (torch.tensor([[[1]]]), "[[[1]]]"),
        (torch.ones(19, dtype=torch.bool), "bool tensor of shape (19,)"),
        (torch.ones(3, 19, dtype=torch.bool), "bool tensor of shape (3, 19)"),
        (torch.ones(2, 18, dtype=torch.bool), "bool tensor of shape (2, 18)"),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES)
def test_forms_that_it_does_not_take(family, keep, named):
    """One sentence, before anything ran, whatever the method."""
    model = shared(family)
    inputs = make_inputs(model, text_lengths=(9, 9, 9) if family == "llava" else (17, 17, 17))
    assert inputs["input_ids"].shape[1] == 18
    for method in ("random", "none"):
        with vlmprune.wrap(model, method), torch.no_grad():
            sentence(lambda: model(**inputs, logits_to_keep=keep), "logits_to_keep", named, "18")
