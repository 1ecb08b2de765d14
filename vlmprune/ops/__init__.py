"""The operations whose speed matters, one interface each: PyTorch's implementation, and a Triton kernel for GPUs.

`use("torch")`, `use("triton")` or `use("auto")` chooses, and so does the environment variable VLMPRUNE_KERNELS; by
default tensors on a GPU go to Triton. Beside each interface `<name>.py` stands its `<name>_triton.py`.
"""

from .column_sums import column_sums
from .dispatch import BACKENDS, chosen, use
from .gather import Compacted, compact, compact_kv
from .redistribution import redistribute
from .top_k import top_k

__all__ = ["BACKENDS", "Compacted", "chosen", "column_sums", "compact", "compact_kv", "redistribute", "top_k", "use"]
