"""A small model guides a large one: it runs first, ranks visual tokens, and may answer alone (SGL).

Read `runner` (what the guide does), `inputs` and `vision` (what the two models share), `session` (the large model).
"""

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
