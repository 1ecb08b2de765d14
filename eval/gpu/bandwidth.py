"""`eval.speed.kernels_gpu` as a stage: the kernels' bandwidth against a measured copy, gathers and SDPA."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval.speed.kernels_gpu import KernelSizes, arithmetic, measured

from .measure import card
from .stage import FAILED, MEASURED, Emit, GpuStage, Point, StageSetting, short

TINY = KernelSizes(batches=(1,), length=96, width=64, heads=2, head=16, rounds=2, device="cpu")


def groups(tiny: bool) -> list[str]:
    """One, since what is timed wants the GPU for itself."""
    return ["kernels"]


def run(group: str, setting: StageSetting, emit: Emit) -> None:
    """Time everything; a kernel that differs from PyTorch is a failure, not a time."""
    torch.manual_seed(setting.seed)
    sizes = TINY if setting.tiny else KernelSizes()
    for name, work in measured(sizes):
        try:
            emit({"point": name, "status": MEASURED, **work()})
        except Exception as error:  # the next kernel may still run
            emit({"point": name, "status": FAILED, "error": short(error)})
    emit({"point": "card", "status": MEASURED, "card": card()})
    emit({"point": "roofline", "status": MEASURED, "least": arithmetic(sizes)})


def headlines(points: Sequence[Point]) -> list[str]:
    """Fractions of a copy's bandwidth and of SDPA's time."""
    lines = []
    for point in points:
        if "of_copy_bandwidth" in point:
            lines.append(
                f"{point['point']}: {point['of_copy_bandwidth']:.0%} of a copy's bandwidth "
                f"({point['copy_gigabytes_a_second']:.0f} GB/s), x {point['faster_than_gathers']:.2f} of four gathers"
            )
        elif "share_of_sdpa" in point:
            lines.append(f"{point['point']}: {point['share_of_sdpa']:.1%} of SDPA's time")
    return lines


STAGE = GpuStage("bandwidth", 25, groups, run)
