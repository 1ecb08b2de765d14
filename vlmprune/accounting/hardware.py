"""The hardware that plans are made for: vendors' data-sheet peaks, or a user's own numbers; and this machine's name."""

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import VlmpruneError, nearest


@dataclass(frozen=True)
class Hardware:
    """One accelerator: `flops` per second, `bandwidth` in bytes per second, `memory` in bytes.

    `half_only`: the peak is that of bf16 and fp16; single precision is slower. `cards`: how many of them these are.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    half_only: bool = True
    cards: int = 1

    def __post_init__(self) -> None:
        for what in ("flops", "bandwidth", "memory"):
            if not 0 < (peak := getattr(self, what)) < float("inf"):
                raise VlmpruneError(f"{what} of {self.name!r} must be a number above 0, got {peak!r}.")

    @property
    def title(self) -> str:
        return self.name if self.cards == 1 else f"{self.cards} x {self.name}"

    def seconds(self, flops: float, moved: float) -> float:
        """The roofline: arithmetic and memory traffic (bytes) overlap, and the longer of the two is the time."""
        return max(flops / self.flops, moved / self.bandwidth)


# Dense bf16 with fp32 accumulation, no sparsity, from NVIDIA's data sheets: H100 SXM5 80 GB, A100 SXM4 80 GB,
# GeForce RTX 4090 (Ada whitepaper, appendix A), L4, H200 SXM 141 GB, L40S.
HARDWARE = {
    row.name: row
    for row in (
        Hardware("h100", 989.4e12, 3.35e12, 80e9),
        Hardware("h200", 989.4e12, 4.8e12, 141e9),
        Hardware("a100", 312e12, 2.039e12, 80e9),
        Hardware("l40s", 362.05e12, 864e9, 48e9),
        Hardware("4090", 165.2e12, 1.008e12, 24e9),
        Hardware("l4", 121e12, 300e9, 24e9),
    )
}


def hardware(name: str, *, gpus: int = 1, **peaks: float | None) -> Hardware:
    """A row of the table, or "custom" with all of its peaks: `flops`, `bandwidth` and `memory`, None if not given.

    `gpus`: so many of them share a model, perfectly.
    """
    one = _one(name, peaks)
    if gpus == 1:
        return one
    peaks_of_all = {what: gpus * getattr(one, what) for what in ("flops", "bandwidth", "memory")}
    return replace(one, cards=gpus, **peaks_of_all)


def _one(name: str, peaks: dict[str, float | None]) -> Hardware:
    given = {what: value for what, value in peaks.items() if value is not None}
    if name == "custom":
        if missing := [what for what in ("flops", "bandwidth", "memory") if what not in given]:
            raise VlmpruneError(
                f"The hardware 'custom' has no {missing[0]}; give --flops (per second), --bandwidth (bytes per second) "
                "and --memory (bytes)."
            )
        return Hardware("custom", given["flops"], given["bandwidth"], given["memory"], half_only=False)
    if name not in HARDWARE:
        raise VlmpruneError(f"There is no hardware {name!r}; {nearest(name, [*HARDWARE, 'custom'])}")
    if given:
        first = next(iter(given))
        raise VlmpruneError(f"The peaks of {name!r} are known, but {first} was given; use --hardware custom.")
    return HARDWARE[name]


def machine() -> str:
    """The processor, its cores and torch's threads."""
    import torch  # plans for other machines need none

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores of which {torch.get_num_threads()} used, torch {torch.__version__}"
