"""Every Triton kernel against its naive twin, on the shapes of the interpreter's tests, in bf16, fp16 and fp32."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch

from tests.ops.cases import CASES, Case, filled
from vlmprune import ops

from .stage import ABSENT, FAILED, PASSED, Emit, GpuStage, Point, StageSetting, short

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SMALL = 64  # tokens; the interpreter runs larger cases in the test suite


def groups(tiny: bool) -> list[str]:
    """A kernel in a precision; masks of the attention kernels apart, since each is a kernel of its own to compile."""
    names = list(dict.fromkeys(case.kernel for case in CASES))
    shapes = [f"{name} {dtype}" for name in names for dtype in DTYPES]
    masks = [f"{name} {dtype} masks" for name in ("column_sums", "redistribute") for dtype in DTYPES]
    return [group for group in shapes if group.endswith("bf16")] if tiny else shapes + masks


def cases_of(group: str, tiny: bool) -> list[Case]:
    """The cases of a group."""
    name, dtype, *masks = group.split()
    found = [case for case in CASES if case.kernel == name and case.name.startswith("mask ") == bool(masks)]
    if dtype != "bf16" or tiny:  # addresses are the same in every precision, and take 4 GiB
        found = [case for case in found if "beyond" not in case.name]
    if tiny:
        found = [case for case in found if case.tokens <= SMALL]
    return found


def run(group: str, setting: StageSetting, emit: Emit) -> None:
    """Check every case of a group."""
    if find_spec("triton") is None:
        emit({"point": group, "status": ABSENT if setting.tiny else FAILED, "error": "Triton is not installed"})
        return
    ops.use("triton")
    dtype = DTYPES[group.split()[1]]
    for case in cases_of(group, setting.tiny):
        point: Point = {"point": case.name, "kernel": case.kernel, "dtype": str(dtype).removeprefix("torch.")}
        torch.manual_seed(setting.seed)
        try:
            with filled():
                found = case.make(dtype, setting.device).check()
        except Exception as error:  # the next case may still run
            emit({**point, "status": FAILED, "error": short(error)})
            continue
        emit({**point, "status": PASSED if found.pop("ok") else FAILED, **found})


def headlines(points: Sequence[Point]) -> list[str]:
    """Per kernel and precision the case that comes nearest to what is allowed."""
    worst: dict[str, Point] = {}
    for point in points:
        if "worst" in point:
            name = f"{point['kernel']} {point['dtype']}"
            worst[name] = max(worst.get(name, point), point, key=lambda one: one["of_allowed"])
    allowed = {name: f", {one['of_allowed']:.0%} of what is allowed" for name, one in worst.items() if one["absolute"]}
    return [f"{name}: worst {one['worst']:.1e}{allowed.get(name, '')}" for name, one in worst.items()]


STAGE = GpuStage("kernels", 80, groups, run, side_by_side=min(12, os.cpu_count() or 1))
