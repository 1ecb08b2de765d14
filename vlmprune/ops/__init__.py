"""The operations whose speed matters, one interface each: PyTorch's implementation, and a Triton kernel for GPUs.

`use("torch")`, `use("triton")` or `use("auto")` chooses, and so does the environment variable VLMPRUNE_KERNELS; by
default tensors on a GPU go to Triton. Beside each interface `<name>.py` stands its `<name>_triton.py`.
"""

from .dispatch import BACKENDS, chosen, use

__all__ = ["BACKENDS", "chosen", "use"]
