"""How an engine has to be started for pruned images: as options of `vllm.LLM`, or as arguments of its server."""

import json
from typing import Any

from ..errors import VlmpruneError
from .tower import served_family

# What the plugin registers: the model's class in `plugin.models`.
ARCHITECTURES = {"llava": "VlmpruneLlava", "qwen2_5_vl": "VlmpruneQwen2_5_VL", "qwen3_vl": "VlmpruneQwen3VL"}
# Likewise of the models that prune images themselves, by `config.model_type`.
IN_ENGINE = {
    "llava": "VlmpruneLlava",
    "qwen2_5_vl": "VlmpruneQwen2_5_VL",
    "qwen3_vl": "VlmpruneQwen3VL",
    "qwen3_5": "VlmpruneQwen3_5",
    "llava_next": "VlmpruneLlavaNext",
    "llava_onevision": "VlmpruneLlavaOnevision",
    "internvl": "VlmpruneInternVL",
    "idefics3": "VlmpruneIdefics3",
    "smolvlm": "VlmpruneSmolVLM",
    "gemma3": "VlmpruneGemma3",
}
# Of these, those whose positions are one running number.
ONE_AXIS = {"llava", "llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm", "gemma3"}
# In their config it makes vLLM ask the model for positions. The plugin's rows are all alike, so the split means
# nothing, and the language model, whose own config stays as it is, gets one of them.
ONE_SECTION = [1, 0, 0]
# vLLM fetches any address that a request names, unless domains are listed. This one cannot exist (RFC 2606).
NO_DOMAIN = "none.invalid"


def engine_options(model: Any, positions: str = "original", *, raw_images: int | None = None) -> dict[str, Any]:
    """Options of `vllm.LLM`.

    Args:
        model: its directory or Hub id, or its config. positions: those of the encoder; "original" needs vlmprune
            installed beside vLLM. raw_images: how many images a prompt may bring unpruned; 0 leaves the vision tower
            unloaded, None is vLLM's own limit.

    The engine fetches nothing from the web: of `allowed_media_domains` there is only one that cannot exist.

    Raises:
        UnsupportedModelError: an engine takes no embeddings of this family. VlmpruneError: not these positions.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(model)) if not hasattr(model, "model_type") else model
    served_family(config, positions)
    if raw_images is not None and (isinstance(raw_images, bool) or not isinstance(raw_images, int) or raw_images < 0):
        raise VlmpruneError(f"raw_images must be an int >= 0 or None, got {raw_images!r}.")
    options: dict[str, Any] = {"enable_mm_embeds": True, "allowed_media_domains": [NO_DOMAIN]}
    if raw_images is not None:
        options["limit_mm_per_prompt"] = {"image": raw_images}
    if positions == "original":
        overrides: dict[str, Any] = {"architectures": [ARCHITECTURES[config.model_type]]}
        if config.model_type in ONE_AXIS:
            overrides["mrope_section"] = ONE_SECTION
        options["hf_overrides"] = overrides
    return options


def engine_arguments(model: Any, positions: str = "original", *, raw_images: int | None = None) -> list[str]:
    """The same as arguments of `vllm serve`."""
    arguments = []
    for name, value in engine_options(model, positions, raw_images=raw_images).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            arguments += [option, *value]
        else:
            arguments += [option] if value is True else [option, json.dumps(value)]
    return arguments
