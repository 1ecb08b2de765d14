"""The Triton kernels against naive twins, run on the CPU by Triton's interpreter; `test_interpreter.py` starts this.

The interpreter has to be switched on before Triton is imported, so these tests have a process of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import vlmprune
from tests.kernels.twins import columns_twin, compact_kv_twin, compact_twin, redistribute_twin, top_k_twin
from tests.support.grid import full
from tests.support.tiny_families import build, make_inputs
from vlmprune import kernels
from vlmprune.flow.compact import compaction


def sized(shapes: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    """Those of 2,880 rows, which take half of the interpreter's time, in full runs only."""
    return [shape for shape in shapes if full() or 2880 not in shape]


HALF_OR_SINGLE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels write into tensors full of NaN (or of absurd integers), so that what they leave out shows."""

    def filled(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan if tensor.is_floating_point() else 77)

    empty, new_empty = torch.empty, Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: filled(empty(*a, **k)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: filled(new_empty(self, *a, **k)))
    kernels.use("triton")
    yield
    kernels.use("auto")


def close(got: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    """Sums are accumulated in fp32 whatever the inputs: bf16 differs by its products' order alone."""
    return torch.allclose(got.float(), wanted.float(), atol=2e-5, rtol=1e-4)


def keep(batch: int, length: int, share: float = 0.4) -> Any:
    """A ragged choice."""
    mask = torch.rand(batch, length) < share
    mask[:, -1] = True
    return compaction(mask)


@HALF_OR_SINGLE
@pytest.mark.parametrize(
    ("length", "width", "rotary"), sized([(1, 64, 64), (63, 96, 80), (577, 160, 96), (2880, 32, 128)])
)
def test_compact(dtype: torch.dtype, length: int, width: int, rotary: int) -> None:
    batch = 1 if length == 2880 else 3
    chosen = keep(batch, length, 20 / length)  # the interpreter runs program after program
    hidden = torch.randn(length, batch, width * 2).to(dtype).transpose(0, 1)[..., ::2]  # no stride as usual
    turns = (torch.randn(1, length, rotary), torch.randn(batch, length, rotary).to(dtype))
    positions, mask = torch.randint(0, 1 << 40, (1, length)), torch.rand(batch, length) < 0.8
    got = kernels.compact(hidden, chosen.index, chosen.real, rotary=turns, positions=positions, mask=mask)
    wanted = compact_twin(hidden, chosen.index, chosen.real, turns, positions, mask)
    for a, b in zip((got.hidden, *got.rotary, got.positions, got.mask), wanted, strict=True):
        assert a is not None
        assert torch.equal(a, b)
        assert a.dtype == b.dtype


def test_compact_with_axes_of_positions_and_rows_compacted_before() -> None:
    first = keep(2, 40)
    hidden, turns = torch.randn(2, 40, 24), tuple(torch.randn(3, 2, 40, 16) for _ in range(2))
    positions, mask = torch.randint(0, 99, (4, 2, 40)), torch.ones(2, 40, dtype=torch.long)
    inner = torch.randint(0, 12, first.index.shape)
    got = kernels.compact(
        hidden, first.index, first.real, inner=inner, rotary=turns, positions=positions, mask=mask
    )
    kernels.use("torch")
    wanted = kernels.compact(
        hidden, first.index, first.real, inner=inner, rotary=turns, positions=positions, mask=mask
    )
    for a, b in zip((*got.rotary, got.hidden, got.positions, got.mask),
                    (*wanted.rotary, wanted.hidden, wanted.positions, wanted.mask), strict=True):  # fmt: skip
        assert a is not None and b is not None
        assert torch.equal(a, b)
    assert torch.equal(got.hidden, torch.stack([hidden[b][inner[b]] for b in range(2)]))


def test_compact_of_hidden_states_alone() -> None:
    chosen = keep(2, 33)
    hidden = torch.randn(2, 33, 5000)  # wider than one program's part
    got = kernels.compact(hidden, chosen.index, chosen.real)
    assert torch.equal(got.hidden, compact_twin(hidden, chosen.index, chosen.real, (), None, None)[0])
    assert (got.rotary, got.positions, got.mask) == ((), None, None)


@HALF_OR_SINGLE
@pytest.mark.parametrize(("length", "heads", "width"), [(1, 2, 64), (63, 3, 80), (577, 1, 96), (64, 2, 128)])
def test_compact_kv(dtype: torch.dtype, length: int, heads: int, width: int) -> None:
    index = keep(2, length).index
    key = torch.randn(2, length, heads, width).to(dtype).transpose(1, 2)
    value = torch.randn(2, heads, length, width // 2).to(dtype)
    for got, wanted in zip(kernels.compact_kv(key, value, index), compact_kv_twin(key, value, index), strict=True):
        assert torch.equal(got, wanted)


def visibility(form: str, batch: int, queries: int, keys: int, dtype: torch.dtype) -> dict[str, Any]:
    """Mask arguments of an attention call."""
    if form == "padding":
        mask = torch.ones(batch, keys, dtype=torch.long)
        mask[-1, : keys // 3] = 0
        return {"mask": mask}
    if form in ("bool", "additive"):
        seen = torch.rand(batch, 1, queries, keys + 3) < 0.7
        seen[..., 0] = True
        return {"mask": seen if form == "bool" else torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -1e4)}
    return {"none": {}, "all": {"causal": False}, "window": {"window": 15}, "capped": {"softcap": 2.0}}[form]


FORMS = ["none", "all", "padding", "bool", "additive", "window", "capped"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_column_sums_over_masks(form: str, weighted: bool) -> None:
    query, key = torch.randn(2, 4, 9, 80), torch.randn(2, 2, 21, 80)
    rows = torch.tensor([[8, 5, 7], [8, 6, 6]])
    options = visibility(form, 2, 9, 21, torch.float32)
    weight = torch.tensor([[1.0, 0.5, 2.0], [1.0, 1.0, 0.0]]) if weighted else None
    got = kernels.column_sums(query, key, rows, weight=weight, scaling=80**-0.5, **options)
    assert close(got, columns_twin(query, key, rows, weight, scaling=80**-0.5, **options), torch.float32)


@HALF_OR_SINGLE
@pytest.mark.parametrize(
    ("length", "heads", "groups", "width", "rows"),
    sized([(1, 2, 2, 64, 1), (63, 4, 1, 96, 20), (577, 2, 2, 128, 1), (2880, 1, 1, 80, 3)]),
)
def test_column_sums_over_shapes(
    dtype: torch.dtype, length: int, heads: int, groups: int, width: int, rows: int
) -> None:
    query = torch.randn(1, length, heads, width).to(dtype).transpose(1, 2)
    key = torch.randn(1, groups, length, width).to(dtype)
    chosen = torch.randint(0, length, (1, rows))
    got = kernels.column_sums(query, key, chosen, scaling=width**-0.5)
    assert close(got, columns_twin(query, key, chosen, None, scaling=width**-0.5), dtype)
    assert torch.allclose(got.sum(), torch.tensor(float(rows * heads)), rtol=1e-4)


SHARES = {"p": 0.4, "rho": 0.5, "gate": 0.2}


def edited(
    batch: int, heads: int, groups: int, length: int, width: int, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """An attention call, and marks with some sinks that outweigh the rest in some heads."""
    states = [torch.randn(batch, heads, length, width), torch.randn(batch, groups, length, width)]
    states += [torch.randn(batch, groups, length, width), torch.randn(batch, length, heads, width)]
    visual = torch.zeros(batch, length, dtype=torch.bool)
    visual[:, 1 : max(2, length * 2 // 3)] = True
    sinks = torch.rand(batch, length) < 0.2
    sinks[:, 0] = True
    return [state.to(dtype) for state in states], {"sinks": sinks, "visual": visual}


@pytest.mark.parametrize("form", FORMS)
def test_redistribute_over_masks(form: str) -> None:
    (query, key, value, output), marks = edited(2, 4, 2, 24, 80, torch.float32)
    rows = torch.tensor([[23, 20, 22], [-1, 21, 23]])
    options = visibility(form, 2, 24, 24, torch.float32) | SHARES | {"scaling": 80**-0.5}
    before = output.clone()
    wanted = redistribute_twin(output, query, key, value, rows, **marks, **options)
    got = kernels.redistribute(output, query, key, value, rows, **marks, **options)
    assert got is output
    assert close(got, wanted, torch.float32)
    changed = (got != before).any(-1)
    assert changed.any()
    assert not changed[0, :20].any() and not changed[1, :21].any()


@pytest.mark.parametrize(
    ("length", "heads", "groups", "width", "dtype"),
    sized([
        (1, 2, 2, 64, torch.float32),
        (1, 2, 2, 64, torch.bfloat16),
        (63, 4, 1, 96, torch.float32),
        (63, 4, 1, 96, torch.bfloat16),
        (577, 2, 1, 128, torch.float32),
        (2880, 1, 1, 80, torch.bfloat16),
    ]),
)
def test_redistribute_over_shapes(length: int, heads: int, groups: int, width: int, dtype: torch.dtype) -> None:
    (query, key, value, output), marks = edited(1, heads, groups, length, width, dtype)
    marks = {name: mark[:, : max(1, length - 5)] for name, mark in marks.items()}  # text after the prompt is unmarked
    rows = torch.arange(max(0, length - 18), length, 1 + length // 600)[None]
    options = SHARES | {"scaling": width**-0.5}
    wanted = redistribute_twin(output, query, key, value, rows, **marks, **options)
    got = kernels.redistribute(output, query, key, value, rows, **marks, **options)
    # The one rounding of the result to bf16 may fall to the other side.
    tolerance = 2e-5 if dtype == torch.float32 else 2**-7
    assert torch.allclose(got.float(), wanted.float(), atol=tolerance, rtol=tolerance)


@HALF_OR_SINGLE
@pytest.mark.parametrize("lengths", sized([[1], [63, 577], [2880], [5, 1, 16]]))
def test_top_k(dtype: torch.dtype, lengths: list[int]) -> None:
    total = sum(lengths)
    scores = (torch.randn(total) * 4).round().to(dtype) / 4  # many ties
    scores[::7] = 0.0
    scores[3::7] *= -0.0
    order = torch.randperm(total) if len(lengths) > 1 else torch.arange(total)
    spans = [torch.sort(part).values for part in order.split(lengths)]
    for share in (0.0, 0.3, 1.0):
        counts = [round(share * length) for length in lengths]
        got = kernels.top_k(scores, spans, counts)
        assert torch.equal(got, top_k_twin(scores, spans, counts))
    # Strided scores, infinities, and one token each.
    wide = torch.stack([scores, scores], dim=1)[:, 0]
    wide[0], wide[-1] = math.inf, -math.inf
    assert torch.equal(kernels.top_k(wide, spans, [1] * len(spans)), top_k_twin(wide, spans, [1] * len(spans)))


@pytest.mark.parametrize(("family", "attention"), [("llava", "sdpa"), ("qwen2_5_vl", "eager"), ("gemma3", "sdpa")])
@pytest.mark.parametrize("method", ["fastv", "uniform"])
def test_a_wrapped_model_runs_on_the_kernels(family: str, attention: str, method: str) -> None:
    model = build(family, attn=attention)
    inputs = make_inputs(model)
    logits, kept = {}, {}
    for backend in ("torch", "triton"):
        kernels.use(backend)
        with torch.no_grad(), vlmprune.wrap(model, method, keep=0.4, layer=1) as pruned:
            logits[backend] = model(**inputs).logits
        kept[backend] = [one.tolist() for one in pruned.report.kept]
    assert kept["torch"] == kept["triton"]
    assert torch.allclose(logits["torch"], logits["triton"], atol=1e-5)


def test_gradients_go_through_pytorch() -> None:
    chosen = keep(2, 12)
    hidden = torch.randn(2, 12, 8, requires_grad=True)
    kernels.compact(hidden, chosen.index, chosen.real).hidden.sum().backward()
    assert hidden.grad is not None
