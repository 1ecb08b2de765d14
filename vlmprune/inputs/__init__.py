"""What goes into a model: its processor, images, clips, and questions fit for it; `chat.py` puts them together."""

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
