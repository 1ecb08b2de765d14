"""The operations whose speed matters: each has one interface, a PyTorch implementation and a Triton kernel for GPUs.

`use("torch")`, `use("triton")`, `use("auto")` or the environment variable VLMPRUNE_KERNELS chooses the implementation.
By default Triton runs on GPU tensors. The kernel behind `<name>.py` is in `<name>_triton.py`.
"""

from .dispatch import BACKENDS, chosen, use

__all__ = ["BACKENDS", "chosen", "use"]
