"""What every kernel is tried on: problems with the answers of their naive twins, for the interpreter and for a GPU.

Problems are drawn on the CPU, so that every device gets the same; twins run on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.ops.twins import columns_twin, compact_twin, redistribute_twin, top_k_twin
from vlmprune.flow.compact import Compaction, compaction
from vlmprune.ops.attention_rows import Visibility
from vlmprune.ops.column_sums import column_sums
from vlmprune.ops.gather import compact
from vlmprune.ops.redistribution import redistribute
from vlmprune.ops.top_k import top_k

SINGLE, HALVES = torch.float32, (torch.bfloat16, torch.float16)
FORMS = ("none", "all", "padding", "bool", "additive", "window", "capped")
SHARES = {"p": 0.4, "rho": 0.5, "gate": 0.2}

FAR_OFF = 1e300  # how far NaN is from a number: JSON has no infinity
EXACT = (0.0, 0.0, "numbers are moved or compared, none is computed")
SUMS = (2e-5, 1e-4, "sums in fp32 in another order; half formats are exact in tf32, fp32 takes three tf32 products")
ROUNDED = {
    SINGLE: SUMS,
    torch.bfloat16: (2**-7, 2**-7, "the one rounding of the result to bf16 may fall to the other side"),
    torch.float16: (2**-9, 2**-9, "the result is rounded to fp16, and the weights of its change to tf32, both 2^-11"),
}


@dataclass(frozen=True)
class Work:
    """`run` gives what the package computes, `wanted` what its twin says. `tolerance`: absolute, relative, and why."""

    run: Callable[[], Sequence[Tensor]]
    wanted: Callable[[], Sequence[Tensor]]
    tolerance: tuple[float, float, str]

    def check(self) -> dict[str, Any]:
        """Worst difference, as a share of what is allowed too, and whether all is well."""
        bound, relative, reason = self.tolerance
        worst = share = 0.0
        same = True
        for got, wanted in zip(self.run(), self.wanted(), strict=True):
            same &= got.shape == wanted.shape and (bound > 0 or got.dtype == wanted.dtype)
            if not same or not wanted.numel():
                continue
            got, wanted = got.cpu().double(), wanted.cpu().double()
            apart = torch.where(got == wanted, 0.0, (got - wanted).abs()).nan_to_num(nan=FAR_OFF, posinf=FAR_OFF)
            worst = max(worst, float(apart.max()))
            if bound:
                share = max(share, float((apart / (bound + relative * wanted.abs())).max()))
        numbers = {"worst": worst, "of_allowed": share, "absolute": bound, "relative": relative, "reason": reason}
        return {**numbers, "ok": same and (share <= 1.0 if bound else worst == 0.0)}


@dataclass(frozen=True)
class Case:
    """A problem of a kernel: `make(dtype, device)`. `dtypes`: what the interpreter is given. `tokens`: its size."""

    kernel: str
    name: str
    make: Callable[[torch.dtype, str], Work]
    tokens: int
    dtypes: tuple[torch.dtype, ...] = (SINGLE, torch.bfloat16)

    def __str__(self) -> str:
        return f"{self.kernel} {self.name}"


@contextmanager
def filled() -> Iterator[None]:
    """Kernels write into tensors full of NaN (or of absurd integers), so that what they leave out shows."""

    def fill(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan if tensor.is_floating_point() else 77)

    empty, new_empty = torch.empty, Tensor.new_empty
    with (
        patch.object(torch, "empty", lambda *a, **k: fill(empty(*a, **k))),
        patch.object(Tensor, "new_empty", lambda self, *a, **k: fill(new_empty(self, *a, **k))),
    ):
        yield


def keep(batch: int, length: int, share: float = 0.4) -> Compaction:
    """A ragged choice."""
    mask = torch.rand(batch, length) < share
    mask[:, -1] = True
    return compaction(mask)


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


def moved(options: dict[str, Any], device: str) -> dict[str, Any]:
    """The options with their tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}


# --- compact -------------------------------------------------------------------------------------------------------


def _compacted(device: str, chosen: Compaction, hidden: Tensor, **beside: Any) -> list[Tensor]:
    """What `compact` makes of tensors on the CPU, on a device: all results that there are."""
    given = {name: tuple(t.to(device) for t in part) if name == "cos_sin" else part for name, part in beside.items()}
    states, cos_sin, position_ids = compact(hidden, chosen.index.to(device), **moved(given, device))
    return [part for part in (states, *cos_sin, position_ids) if part is not None]


def _compact(length: int, width: int, rotary: int, dtype: torch.dtype, device: str) -> Work:
    batch = 1 if length == 2880 else 3
    chosen = keep(batch, length, 20 / length)  # the interpreter runs program after program
    hidden = torch.randn(length, batch, width * 2).to(dtype)
    cos_sin = (torch.randn(1, length, rotary), torch.randn(batch, length, rotary).to(dtype))
    position_ids = torch.randint(0, 1 << 40, (1, length))

    def strided(device: str) -> Tensor:
        return hidden.to(device).transpose(0, 1)[..., ::2]  # no stride as usual

    return Work(
        lambda: _compacted(device, chosen, strided(device), cos_sin=cos_sin, position_ids=position_ids),
        lambda: compact_twin(strided("cpu"), chosen.index, *cos_sin, position_ids),
        EXACT,
    )


def _compact_axes(dtype: torch.dtype, device: str) -> Work:
    """Several axes of positions, and rows that were compacted before."""
    chosen = keep(2, 40)
    hidden = torch.randn(2, 40, 24).to(dtype)
    cos_sin = tuple(torch.randn(3, 2, 40, 16) for _ in range(2))
    position_ids = torch.randint(0, 99, (4, 2, 40))
    inner = torch.randint(0, 12, chosen.index.shape)

    def wanted() -> Sequence[Tensor]:
        def rows(tensor: Tensor, index: Tensor) -> Tensor:
            return compact_twin(tensor, index)[0]

        axes = [torch.stack([rows(axis, chosen.index) for axis in part]) for part in (*cos_sin, position_ids)]
        return rows(hidden, inner), *axes

    beside = {"inner": inner, "cos_sin": cos_sin, "position_ids": position_ids}
    return Work(lambda: _compacted(device, chosen, hidden.to(device), **beside), wanted, EXACT)


def _compact_wide(dtype: torch.dtype, device: str) -> Work:
    """Hidden states alone, wider than one program's part."""
    chosen, hidden = keep(2, 33), torch.randn(2, 33, 5000).to(dtype)
    return Work(
        lambda: _compacted(device, chosen, hidden.to(device)),
        lambda: compact_twin(hidden, chosen.index),
        EXACT,
    )


# --- attention -----------------------------------------------------------------------------------------------------


def _columns_form(form: str, weighted: bool, dtype: torch.dtype, device: str) -> Work:
    query, key = torch.randn(2, 4, 9, 80).to(dtype), torch.randn(2, 2, 21, 80).to(dtype)
    rows = torch.tensor([[8, 5, 7], [8, 6, 6]])
    seen = {"scaling": 80**-0.5, **visibility(form, 2, 9, 21, dtype)}
    weight = torch.tensor([[1.0, 0.5, 2.0], [1.0, 1.0, 0.0]]) if weighted else None

    def run() -> Sequence[Tensor]:
        states = (query.to(device), key.to(device), rows.to(device))
        weights = None if weight is None else weight.to(device)
        return (column_sums(*states, Visibility(**moved(seen, device)), weights),)

    return Work(run, lambda: (columns_twin(query, key, rows, weight, **seen),), SUMS)


def _columns_shape(
    length: int, heads: int, groups: int, width: int, count: int, dtype: torch.dtype, device: str
) -> Work:
    query, key = torch.randn(1, length, heads, width).to(dtype), torch.randn(1, groups, length, width).to(dtype)
    rows, scaling = torch.randint(0, length, (1, count)), width**-0.5

    def run() -> Sequence[Tensor]:
        states = (query.to(device).transpose(1, 2), key.to(device), rows.to(device))
        got = column_sums(*states, Visibility(scaling))
        return got, got.sum(dim=1)

    def wanted() -> Sequence[Tensor]:
        columns = columns_twin(query.transpose(1, 2), key, rows, None, scaling=scaling)
        return columns, torch.tensor([float(count * heads)])  # every row's weights add up to one

    return Work(run, wanted, SUMS)


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


def _redistribute(
    states: list[Tensor], rows: Tensor, marks: dict[str, Any], seen: dict[str, Any], dtype: torch.dtype, device: str
) -> Work:
    query, key, value, output = states

    def run() -> Sequence[Tensor]:
        own = output.to(device, copy=True)
        given = [state.to(device) for state in (query, key, value, rows)]
        got = redistribute(own, *given, **moved(marks, device), **SHARES, seen=Visibility(**moved(seen, device)))
        assert got is own
        return (got,)

    def wanted() -> Sequence[Tensor]:
        after = redistribute_twin(output, query, key, value, rows, **marks, **SHARES, **seen)
        assert len(rows[0]) < 3 or not torch.equal(after, output)
        return (after,)

    return Work(run, wanted, ROUNDED[dtype])


def _redistribute_form(form: str, dtype: torch.dtype, device: str) -> Work:
    states, marks = edited(2, 4, 2, 24, 80, dtype)
    rows = torch.tensor([[23, 20, 22], [-1, 21, 23]])
    seen = {"scaling": 80**-0.5, **visibility(form, 2, 24, 24, dtype)}
    return _redistribute(states, rows, marks, seen, dtype, device)


def _redistribute_shape(length: int, heads: int, groups: int, width: int, dtype: torch.dtype, device: str) -> Work:
    states, marks = edited(1, heads, groups, length, width, dtype)
    marks = {name: mark[:, : max(1, length - 5)] for name, mark in marks.items()}  # text after the prompt is unmarked
    rows = torch.arange(max(0, length - 18), length, 1 + length // 600)[None]
    return _redistribute(states, rows, marks, {"scaling": width**-0.5}, dtype, device)


# --- top k ---------------------------------------------------------------------------------------------------------


def _top_k(lengths: tuple[int, ...], dtype: torch.dtype, device: str) -> Work:
    total = sum(lengths)
    scores = (torch.randn(total) * 4).round().to(dtype) / 4  # many ties
    scores[::7] = 0.0
    scores[3::7] *= -0.0
    order = torch.randperm(total) if len(lengths) > 1 else torch.arange(total)
    spans = [torch.sort(part).values for part in order.split(lengths)]
    counts = [[round(share * length) for length in lengths] for share in (0.0, 0.3, 1.0)]
    # Strided scores, infinities, and one token each.
    wide, one = torch.stack([scores, scores], dim=1), [1] * len(spans)
    wide[0], wide[-1] = math.inf, -math.inf

    def run() -> Sequence[Tensor]:
        places = [span.to(device) for span in spans]
        plain = [top_k(scores.to(device), places, count) for count in counts]
        return *plain, top_k(wide.to(device)[:, 0], places, one)

    def wanted() -> Sequence[Tensor]:
        return *(top_k_twin(scores, spans, count) for count in counts), top_k_twin(wide[:, 0], spans, one)

    return Work(run, wanted, EXACT)


# --- addresses beyond 2^31 -----------------------------------------------------------------------------------------

FAR = (1 << 31) + 4096  # numbers; 4 GiB in half precision, of which only what is read is ever touched on a CPU


def _far(rows: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """[rows, width] random numbers, the last row 2^31 numbers or more behind the first; and the same on the CPU."""
    room = torch.empty_strided((1,), (1,), dtype=dtype, device=device).resize_(FAR + width)
    stride = FAR // (rows - 1)
    spread = room.as_strided((rows, width), (stride, 1))
    near = torch.randn(rows, width).to(dtype)
    spread.copy_(near)
    return spread, near


def _far_compact(dtype: torch.dtype, device: str) -> Work:
    index = torch.tensor([[0, 2, 3]])

    def run() -> Sequence[Tensor]:
        torch.manual_seed(1)
        hidden = _far(4, 64, dtype, device)[0][None]
        return (compact(hidden, index.to(device))[0],)

    def wanted() -> Sequence[Tensor]:
        torch.manual_seed(1)
        return (torch.randn(4, 64).to(dtype)[index],)

    return Work(run, wanted, EXACT)


def _far_keys(kernel: str, dtype: torch.dtype, device: str) -> Work:
    """Keys (and values) whose entries lie that far apart."""
    query, output = torch.randn(1, 2, 5, 64).to(dtype), torch.randn(1, 5, 2, 64).to(dtype)
    rows, scaling = torch.tensor([[4, 3, 2]]), 0.125
    marks = {"sinks": torch.tensor([[1, 0, 0, 0, 0]]).bool(), "visual": torch.tensor([[0, 1, 1, 1, 0]]).bool()}
    options = {"p": 0.4, "rho": 0.0, "gate": 0.0}

    def run() -> Sequence[Tensor]:
        torch.manual_seed(1)
        key = _far(5, 64, dtype, device)[0][None, None]
        if kernel == "column_sums":
            return (column_sums(query.to(device), key, rows.to(device), Visibility(scaling)),)
        own = [output.to(device, copy=True), query.to(device), key, key, rows.to(device)]
        return (redistribute(*own, **moved(marks, device), **options, seen=Visibility(scaling)),)

    def wanted() -> Sequence[Tensor]:
        torch.manual_seed(1)
        key = torch.randn(5, 64).to(dtype)[None, None]
        if kernel == "column_sums":
            return (columns_twin(query, key, rows, None, scaling=scaling),)
        return (redistribute_twin(output, query, key, key, rows, **marks, **options, scaling=scaling),)

    tolerance = {"column_sums": SUMS, "redistribute": ROUNDED[dtype]}[kernel]
    return Work(run, wanted, tolerance)


def _cases() -> Iterator[Case]:
    """The most telling first: the shapes of models, the forms of masks, what lies far apart."""
    for length, width, rotary in ((1, 64, 64), (63, 96, 80), (577, 160, 96), (2880, 32, 128)):
        yield Case("compact", f"{length} x {width}, rotary {rotary}", partial(_compact, length, width, rotary), length)
    yield Case("compact", "axes of positions, compacted before", _compact_axes, 40, (SINGLE,))
    yield Case("compact", "5,000 wide, hidden states alone", _compact_wide, 33, (SINGLE,))
    for sizes in ((1, 2, 2, 64, 1), (63, 4, 1, 96, 20), (577, 2, 2, 128, 1), (2880, 1, 1, 80, 3)):
        name = "{} keys, {} heads on {}, width {}, {} rows".format(*sizes)
        yield Case("column_sums", name, partial(_columns_shape, *sizes), sizes[0])
    for form in FORMS:
        for weighted in (False, True):
            name = f"mask {form}{', weighted' if weighted else ''}"
            yield Case("column_sums", name, partial(_columns_form, form, weighted), 21, (SINGLE,))
    for shape in ((1, 2, 2, 64), (63, 4, 1, 96), (577, 2, 1, 128), (2880, 1, 1, 80)):
        dtypes = {577: (SINGLE,), 2880: (torch.bfloat16,)}.get(shape[0], (SINGLE, torch.bfloat16))
        name = "{} keys, {} heads on {}, width {}".format(*shape)
        yield Case("redistribute", name, partial(_redistribute_shape, *shape), shape[0], dtypes)
    for form in FORMS:
        yield Case("redistribute", f"mask {form}", partial(_redistribute_form, form), 24, (SINGLE,))
    for lengths in ((1,), (63, 577), (2880,), (5, 1, 16)):
        name = f"spans of {', '.join(map(str, lengths))}"
        yield Case("top_k", name, partial(_top_k, lengths), sum(lengths))
    far = {"compact": _far_compact, **{k: partial(_far_keys, k) for k in ("column_sums", "redistribute")}}
    for kernel, make in far.items():
        yield Case(kernel, "addresses beyond 2^31", make, 5, (torch.bfloat16,))


CASES = tuple(_cases())
