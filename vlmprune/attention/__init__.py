"""Reading attention beside the unchanged fused call."""

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
