"""Clocks and the card: times by CUDA events (by the processor's clock with `--tiny`), medians, what nvidia-smi says."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

CARD = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu", "mig.mode.current",
)  # fmt: skip
AHEAD = 2_000_000  # cycles, a millisecond: the slowest of what is timed took the host half of one


class GpuClock:
    """Marks on a device's stream, and milliseconds between them once it is `synchronised`."""

    def __init__(self, device: str) -> None:
        self.device = device

    def mark(self) -> Any:
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronise(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def between(self, start: Any, end: Any) -> float:
        return 1000 * (end - start) if self.device == "cpu" else float(start.elapsed_time(end))


def spread(values: Sequence[float]) -> dict[str, float]:
    """p20, p50, p80 and how many there were."""
    found = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    names = ("p20", "p50", "p80")
    return {**{name: round(value, 4) for name, value in zip(names, found.tolist(), strict=True)}, "rounds": len(values)}


def times(work: Callable[[], Any], device: str, rounds: int) -> dict[str, float]:
    """Microseconds of `work` on the device, each run with a cold L2: p20, p50, p80; and `host_p50`, what the host takes
    to hand it over, which is what counts where the device has nothing else to do."""
    clock = GpuClock(device)
    # 256 MiB, several times any L2.
    scratch = torch.empty(1 << 26 if device != "cpu" else 1, dtype=torch.int32, device=device)
    for _ in range(min(10, rounds)):
        work()
    marks, host = [], []
    for _ in range(rounds):
        scratch.zero_()
        if device != "cpu":
            torch.cuda._sleep(AHEAD)  # the host hands all of it over meanwhile, so that its own time is left out
        start = clock.mark()
        began = time.perf_counter()
        work()
        host.append(time.perf_counter() - began)
        marks.append((start, clock.mark()))
        clock.synchronise()
    taken = spread([1000 * clock.between(*pair) for pair in marks])
    return taken | {"host_p50": round(1e6 * statistics.median(host), 4)}


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Median ratio of what was measured in the same rounds."""
    return round(statistics.median(b / v for v, b in zip(values, base, strict=False)), 4)


def card() -> dict[str, Any]:
    """What nvidia-smi says of the first card, or why it says nothing."""
    if shutil.which("nvidia-smi") is None:
        return {"absent": "there is no nvidia-smi"}
    command = ["nvidia-smi", f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError) as error:
        return {"absent": f"nvidia-smi failed: {type(error).__name__}"}
    return dict(zip(CARD, (value.strip() for value in said.splitlines()[0].split(",")), strict=False))


def memory(device: str) -> dict[str, Any]:
    """Peak memory since `fresh`, in MiB."""
    if device == "cpu":
        return {}
    return {"peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1)}


def fresh(device: str) -> None:
    """Reset the high-water mark of memory."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def about_device(device: str) -> dict[str, Any]:
    """The device as torch and nvidia-smi see it, to be called where the GPU may be touched."""
    if device == "cpu":
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "card": card(),
    }
