"""The Triton kernels against naive twins, run on the CPU by Triton's interpreter; `test_interpreter.py` starts this.

The interpreter has to be switched on before Triton is imported, so these tests have a process of their own. Their
problems stand in `cases.py`, which the script for a GPU reads too.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import vlmprune
from tests.ops.cases import CASES, SHARES, Case, edited, filled, keep
from tests.support.grid import either, full
from tests.support.tiny_families import build, make_inputs
from vlmprune import ops
from vlmprune.ops.attention_rows import Visibility
from vlmprune.ops.gather import compact
from vlmprune.ops.redistribution import redistribute


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    ops.use("triton")
    with filled():
        yield
    ops.use("auto")


# The problems of 2,880 rows take half of the interpreter's time.
SIZED = [case for case in CASES if full() or "2880" not in str(case)]


def typed(case: Case, turn: int) -> list[tuple[Case, torch.dtype]]:
    """A case with each of its types in a full run, else with one of them in turn."""
    return [(case, dtype) for dtype in either([case.dtypes[turn % len(case.dtypes)]], case.dtypes)]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [pair for turn, case in enumerate(SIZED) for pair in typed(case, turn)],
    ids=lambda value: str(value),
)
def test_equals_the_naive_twin(case: Case, dtype: torch.dtype) -> None:
    found = case.make(dtype, "cpu").check()
    assert found["ok"], found


def test_redistribute_leaves_other_rows_alone() -> None:
    (query, key, value, output), marks = edited(2, 4, 2, 24, 80, torch.float32)
    before, rows = output.clone(), torch.tensor([[23, 20, 22], [-1, 21, 23]])
    redistribute(output, query, key, value, rows, **marks, **SHARES, seen=Visibility(80**-0.5))
    changed = (output != before).any(-1)
    assert changed.any()
    assert not changed[0, :20].any() and not changed[1, :21].any()


@pytest.mark.parametrize(
    ("family", "attention"),
    either([("qwen2_5_vl", "sdpa")], [("llava", "sdpa"), ("qwen2_5_vl", "eager"), ("gemma3", "sdpa")]),
)
@pytest.mark.parametrize("method", either(["fastv"], ["fastv", "uniform"]))
def test_a_wrapped_model_runs_on_the_kernels(family: str, attention: str, method: str) -> None:
    model = build(family, attn=attention)
    inputs = make_inputs(model)
    logits, kept = {}, {}
    for backend in ("torch", "triton"):
        ops.use(backend)
        with torch.no_grad(), vlmprune.wrap(model, method, keep=0.4, layer=1) as pruned:
            logits[backend] = model(**inputs).logits
        kept[backend] = [one.tolist() for one in pruned.report.kept]
    assert kept["torch"] == kept["triton"]
    assert torch.allclose(logits["torch"], logits["triton"], atol=1e-5)


def test_gradients_go_through_pytorch() -> None:
    chosen = keep(2, 12)
    hidden = torch.randn(2, 12, 8, requires_grad=True)
    compact(hidden, chosen.index)[0].sum().backward()
    assert hidden.grad is not None
