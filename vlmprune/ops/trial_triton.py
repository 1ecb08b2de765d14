"""The smallest kernel, to test whether Triton runs on a device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def trial_kernel(out):
    """Program: writes a seven."""
    tl.store(out, 7)


def trial(device: torch.device) -> None:
    """Compile, launch and wait.

    Raises:
        Exception: whatever Triton raises, or RuntimeError where the kernel wrote nothing.
    """
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device_of(out):
        trial_kernel[(1,)](out)
    if int(out) != 7:
        raise RuntimeError("a kernel ran and wrote nothing")
