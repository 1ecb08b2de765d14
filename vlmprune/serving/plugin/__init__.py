"""Inside vLLM: models whose pruned images keep their original positions, found through `vllm.general_plugins`.

Only names are registered; a model is one of these where `hf_overrides` asks for it (`vlmprune.vllm.engine_options`).
"""

from __future__ import annotations

from ..options import ARCHITECTURES


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm import ModelRegistry

    known = ModelRegistry.get_supported_archs()
    for name, place in ARCHITECTURES.values():
        if name not in known:
            ModelRegistry.register_model(name, place)
