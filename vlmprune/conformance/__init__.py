"""Whether pruning is exact on a user's own model: pruned against masked, over a prompt and its steps."""

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
