"""The interfaces on the CPU: PyTorch's implementation against the naive twins, and which implementation is chosen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.ops.twins import columns_twin, compact_twin, redistribute_twin, top_k_twin
from tests.support.grid import only_full
from vlmprune import VlmpruneError, ops
from vlmprune.flow.compact import compaction
from vlmprune.ops import dispatch
from vlmprune.ops.attention_rows import Visibility
from vlmprune.ops.column_sums import column_sums
from vlmprune.ops.gather import compact
from vlmprune.ops.redistribution import redistribute
from vlmprune.ops.top_k import top_k

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _reset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("VLMPRUNE_KERNELS", raising=False)
    yield
    monkeypatch.setattr(dispatch, "_used", None)


def test_compact() -> None:
    chosen = compaction(torch.rand(3, 20) < 0.5)
    hidden, cos_sin = torch.randn(3, 20, 8), (torch.randn(1, 20, 6), torch.randn(3, 20, 6))
    position_ids = torch.randint(0, 99, (1, 20))
    states, pair, ids = compact(hidden, chosen.index, cos_sin=cos_sin, position_ids=position_ids)
    wanted = compact_twin(hidden, chosen.index, *cos_sin, position_ids)
    for a, b in zip((states, *pair, ids), wanted, strict=True):
        assert a is not None
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


@pytest.mark.parametrize("weighted", [False, True])
def test_column_sums(weighted: bool) -> None:
    query, key, rows = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 12, 8), torch.tensor([[8, 5], [8, 6]])
    weight = torch.rand(2, 2) if weighted else None
    got = column_sums(query, key, rows, Visibility(0.3), weight)
    assert torch.allclose(got.double(), columns_twin(query, key, rows, weight, scaling=0.3), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_redistribute(dtype: torch.dtype) -> None:
    query, output = torch.randn(2, 4, 24, 8).to(dtype), torch.randn(2, 24, 4, 8).to(dtype)
    key, value = (torch.randn(2, 2, 24, 8).to(dtype) for _ in range(2))
    visual, sinks = torch.zeros(2, 20, dtype=torch.bool), torch.rand(2, 20) < 0.2
    visual[:, 1:16] = sinks[:, 0] = True
    rows, before = torch.tensor([[23, 20, 22], [-1, 21, 23]]), output.clone()
    options = {"p": 0.4, "rho": 0.5, "gate": 0.2}
    wanted = redistribute_twin(output, query, key, value, rows, sinks, visual, **options, scaling=8**-0.5)
    got = redistribute(output, query, key, value, rows, sinks, visual, Visibility(8**-0.5), **options)
    assert got is output
    tolerance = 1e-6 if dtype == torch.float32 else 2**-7
    assert torch.allclose(got.double(), wanted.double(), atol=tolerance, rtol=tolerance)
    assert (got != before).any()


def test_top_k() -> None:
    scores = (torch.randn(50) * 3).round()
    spans = [part.sort().values for part in torch.randperm(50).split([20, 1, 29])]
    for counts in ([5, 1, 9], [0, 0, 1], [20, 1, 29]):
        assert torch.equal(top_k(scores, spans, counts), top_k_twin(scores, spans, counts))
    assert top_k(scores, [], []).tolist() == []


def test_what_is_chosen() -> None:
    assert ops.chosen() == "auto"
    ops.use("torch")
    assert ops.chosen() == "torch"
    assert not dispatch.runs_triton(torch.zeros(1))


def test_the_environment_chooses_where_the_code_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMPRUNE_KERNELS", "torch")
    assert ops.chosen() == "torch"
    ops.use("auto")
    assert ops.chosen() == "auto"
    monkeypatch.setattr(dispatch, "_used", None)
    monkeypatch.setenv("VLMPRUNE_KERNELS", "cuda")
    with pytest.raises(VlmpruneError, match="VLMPRUNE_KERNELS got the unknown backend 'cuda'"):
        ops.chosen()


def test_what_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VlmpruneError, match=r"unknown backend 'tritn'; did you mean 'triton'\?"):
        ops.use("tritn")
    monkeypatch.setattr(dispatch, "installed", lambda: False)
    with pytest.raises(VlmpruneError, match=r"not installed; install 'vlmprune\[triton\]'"):
        ops.use("triton")
    monkeypatch.setattr(dispatch, "installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(VlmpruneError, match="no GPU to run it"):
        ops.use("triton")


@only_full
def test_nothing_imports_triton_on_a_cpu() -> None:
    """Without Triton installed everything must run; blocked here, whether it is installed or not."""
    code = """
import sys
sys.modules["triton"] = None
import torch, vlmprune
large, small, processor = vlmprune.load_tiny()
with vlmprune.wrap(large, "fastv", processor=processor) as pruned:
    pruned.ask(*vlmprune.tiny.example(), max_new_tokens=1)
print(pruned.report.kept_tokens)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[49]"


def test_where_triton_cannot_run_a_kernel_pytorch_does_and_says_so() -> None:
    """It is installed here, and there is no GPU: whatever keeps it from running is a warning, not an error."""
    pytest.importorskip("triton", reason="Triton is not installed")
    if torch.cuda.is_available() or dispatch.interpreted():
        pytest.skip("Triton runs here")
    dispatch.works.cache_clear()
    with pytest.warns(UserWarning, match=r"does not run on cpu \(.+\); vlmprune's kernels run in PyTorch"):
        assert not dispatch.works(torch.device("cpu"))
    dispatch.works.cache_clear()
