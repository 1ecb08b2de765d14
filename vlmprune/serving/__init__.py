"""Serving: images pruned here, answered by an engine that knows nothing of it. vLLM itself is not imported here.

>>> encoder = vlmprune.serving.Encoder("large", "sgl", guide="small", keep=0.25)
>>> llm = vllm.LLM("large", **vlmprune.serving.engine_options("large", encoder.positions))
>>> llm.generate(encoder.encode(image, "What colour is the star?"))

Read `tower` (the large model's vision tower alone), `encoder` (an image and a question become the kept embeddings),
`payload` (how these travel), then `batch_worker` and `proxy` (many requests at once, in front of a server), `plugin`
(original positions inside vLLM).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load

if TYPE_CHECKING:
    from .encoded import Encoded, KeptImage
    from .encoder import Encoder
    from .options import engine_arguments, engine_options

__all__ = ["Encoded", "Encoder", "KeptImage", "engine_arguments", "engine_options"]


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for: the plugin inside vLLM needs none of them (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'options' if name.startswith('engine') else 'encoder'}"), name)
