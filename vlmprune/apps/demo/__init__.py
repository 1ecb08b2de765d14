"""The demo: a page that shows what the model looks at, what was dropped, and what it cost. Needs the extra `demo`."""

from ... import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
