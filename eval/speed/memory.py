"""Memory of this process as Linux counts it.

Not by `getrusage`: through fork and exec its peak is that of the parent, which may have been larger.
"""

from __future__ import annotations

from pathlib import Path


def kib(field: str) -> int:
    """KiB of a field of /proc/self/status: VmRSS is what is resident, VmHWM the most of it since `forget_peak`."""
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0])


def forget_peak() -> None:
    """VmHWM starts again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
