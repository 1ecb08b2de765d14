"""Running the flow inside the forwards of one wrapped model."""

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
