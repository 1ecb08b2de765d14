"""Pruned images on vLLM without a fork: what a user needs, by one name. vLLM itself is not imported here.

>>> encoder = vlmprune.vllm.Encoder("large", "sgl", guide="small", keep=0.25)
>>> llm = vllm.LLM("large", **vlmprune.vllm.engine_options("large", encoder.positions))
>>> llm.generate(encoder.encode(image, "What colour is the star?"))
"""

from __future__ import annotations

from .serving.encoder import Encoded, Encoder, KeptImage
from .serving.options import engine_arguments, engine_options

__all__ = ["Encoded", "Encoder", "KeptImage", "engine_arguments", "engine_options"]
