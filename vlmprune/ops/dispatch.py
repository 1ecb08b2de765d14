"""Which implementation of an operation runs: PyTorch's, or a Triton kernel for tensors on a GPU.

Triton is imported only when one of its kernels is about to run; without it everything runs in PyTorch.
"""

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from ..errors import VlmpruneError, nearest

BACKENDS = ("auto", "torch", "triton")
ENVIRONMENT = "VLMPRUNE_KERNELS"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_used: str | None = None


def use(backend: str) -> None:
    """Choose the implementation for this process; overrides the environment variable VLMPRUNE_KERNELS.

    Args:
        backend: "auto" (Triton for tensors on a GPU where it works, PyTorch elsewhere), "torch" or "triton". Whatever
            is chosen, PyTorch runs where a gradient is needed, under `torch.compile`, and for number formats that the
            kernels do not have.
    Raises:
        VlmpruneError: an unknown name, or "triton" where Triton cannot run.
    """
    global _used
    _used = _checked(backend, "ops.use")


def chosen() -> str:
    """The choice in force: the last `use`, else the environment variable, else "auto"."""
    return _used or _checked(os.environ.get(ENVIRONMENT, "auto"), ENVIRONMENT)


def _checked(backend: str, where: str) -> str:
    if backend not in BACKENDS:
        raise VlmpruneError(f"{where} got the unknown backend {backend!r}; {nearest(str(backend), BACKENDS)}")
    if backend == "triton" and not installed():
        raise VlmpruneError(f"{where} got 'triton', which is not installed; install 'vlmprune[triton]' or use 'auto'.")
    if backend == "triton" and not (torch.cuda.is_available() or interpreted()):
        raise VlmpruneError(
            f"{where} got 'triton', but there is no GPU to run it; use 'auto', or set TRITON_INTERPRET=1 to try the "
            "kernels on the CPU."
        )
    return backend


def installed() -> bool:
    """Whether Triton can be imported."""
    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, tensor by tensor (for tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1" and installed()


@cache
def works(device: torch.device) -> bool:
    """Whether Triton compiles and runs kernels on a device; tried once per device; a failure warns.

    An installed Triton is not enough: it starts a C compiler, which inference images often lack, and its ptxas must
    support the GPU.
    """
    from .top_k_triton import top_k

    try:
        if top_k(torch.tensor([0.0, 1.0], device=device), [torch.tensor([0, 1])], [1]).tolist() != [1]:
            raise RuntimeError("a kernel ran and computed something else")
    except Exception as error:  # whatever it is, PyTorch computes the same
        warnings.warn(
            f"Triton is installed but does not run on {device} ({type(error).__name__}: {str(error)[:200]}); "
            "vlmprune's kernels run in PyTorch. Often gcc is missing: install it, or use VLMPRUNE_KERNELS=torch.",
            stacklevel=2,
        )
        return False
    return True


def runs_triton(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors runs as a Triton kernel; floating-point tensors first."""
    backend = chosen()
    if backend == "torch" or torch.compiler.is_compiling():
        return False
    first = tensors[0]
    if first.dtype not in FLOATS or any(tensor.device != first.device for tensor in tensors):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if first.device.type == "cuda":
        return installed() and (backend == "triton" or works(first.device))
    return backend == "triton" and interpreted()
