"""Serving: images pruned here, answered by an engine that knows nothing of it. vLLM itself is not imported here.

>>> encoder = vlmprune.serving.Encoder("large", "sgl", guide="small", keep=0.25)
>>> llm = vllm.LLM("large", **vlmprune.serving.engine_options("large", encoder.positions))
>>> llm.generate(encoder.encode(image, "What colour is the star?"))

Read `tower` (the large model's vision tower alone), `encoder` (an image and a question become the kept embeddings),
`payload` (how these travel), then `batch_worker` and `proxy` (many requests at once, in front of a server), `plugin`
(original positions inside vLLM).
"""

import lazy_loader

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load

# Imported when first asked for: the plugin inside vLLM needs none of them (PEP 562).
__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
