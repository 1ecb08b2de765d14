"""Inside vLLM: models whose pruned images keep their original positions, found through `vllm.general_plugins`.

Names are registered, and a model is one of these where `hf_overrides` asks for it: as `architectures` for embeddings
(`vlmprune.serving.engine_options`), or as `vlmprune` for images that the engine prunes itself. Nothing else changes.
"""

import functools
from typing import Any

from ..options import ARCHITECTURES, IN_ENGINE, ONE_AXIS, ONE_SECTION

_SEEN = "vlmprune_seen"


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm import ModelRegistry
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.renderers import chat_utils
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    from .decode import KeptConnector, checked_first

    known = ModelRegistry.get_supported_archs()
    for name in {*ARCHITECTURES.values(), *IN_ENGINE.values()}:
        if name not in known:
            ModelRegistry.register_model(name, f"{__name__}.models:{name}")
    # vLLM's default one; an operator who names another with VLLM_MEDIA_CONNECTOR gets that.
    MEDIA_CONNECTOR_REGISTRY.register("http")(KeptConnector)
    chat_utils._merge_embeds = checked_first(chat_utils._merge_embeds)
    base: Any = ModelArchConfigConvertorBase
    base.get_architectures = _pruning_first(base.get_architectures)


def _pruning_first(plain: Any) -> Any:
    """vLLM's function that says which class a config is loaded with, of which `{"vlmprune": {...}}` makes ours."""
    if hasattr(plain, "__wrapped__"):
        return plain

    @functools.wraps(plain)
    def architectures(self: Any) -> Any:
        config = self.hf_config
        # Asked once: vLLM gives copies of this config other architectures for the parts of a model.
        if hasattr(config, "vlmprune") and not getattr(config, _SEEN, False):
            from ..in_engine import EngineSettings

            EngineSettings.read(config)
            setattr(config, _SEEN, True)
            config.architectures = [IN_ENGINE[config.model_type]]
            if config.model_type in ONE_AXIS:
                config.mrope_section = ONE_SECTION
        return plain(self)

    return architectures
