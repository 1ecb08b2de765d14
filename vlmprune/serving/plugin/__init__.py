"""Inside vLLM: models whose pruned images keep their original positions, found through `vllm.general_plugins`.

Names are registered, and a model is one of these where `hf_overrides` asks for it (`vlmprune.serving.engine_options`);
the checks of embeddings (`decode`) look at nothing unless it is.
"""

from ..options import ARCHITECTURES


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm import ModelRegistry
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.renderers import chat_utils

    from .decode import KeptConnector, checked_first

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES.values():
        if name not in known:
            ModelRegistry.register_model(name, f"{__name__}.models:{name}")
    # vLLM's default one; an operator who names another with VLLM_MEDIA_CONNECTOR gets that.
    MEDIA_CONNECTOR_REGISTRY.register("http")(KeptConnector)
    chat_utils._merge_embeds = checked_first(chat_utils._merge_embeds)
