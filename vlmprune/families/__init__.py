"""Model families as small declared adapters: the only place that knows transformers' model classes."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, overload

from .. import hf  # noqa: F401  # before transformers, to hide a torchvision that does not load
from ..errors import UnsupportedModelError, VlmpruneError
from ..flow.locate import ImageGrid
from .base import Family, Grids, Media, check_options
from .gemma import GEMMA3, PALIGEMMA
from .generic import TESTED, generic_family
from .idefics3 import IDEFICS3, SMOLVLM
from .internvl import INTERNVL
from .llava import LLAVA
from .llava_next import LLAVA_NEXT, LLAVA_ONEVISION
from .mechanisms import takes
from .mllama import MLLAMA
from .qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL

__all__ = ["FAMILIES", "Family", "Media", "family_of", "inner_model", "list_families", "register_family"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        LLAVA,
        LLAVA_NEXT,
        LLAVA_ONEVISION,
        QWEN2_VL,
        QWEN2_5_VL,
        QWEN3_VL,
        IDEFICS3,
        SMOLVLM,
        INTERNVL,
        GEMMA3,
        PALIGEMMA,
        MLLAMA,
    )
}


def list_families() -> dict[str, str]:
    """The tested values of `config.model_type`, and how each is supported: "declared" by an adapter of its own, or
    "generic" by the one that finds everything by rule, which also takes models of types that are not listed."""
    return {**dict.fromkeys(TESTED, "generic"), **dict.fromkeys(FAMILIES, "declared")}


@overload
def register_family(model_type: str, grids: Grids, **options: Any) -> Family: ...
@overload
def register_family(model_type: str, grids: None = None, **options: Any) -> Callable[[Grids], Grids]: ...
def register_family(model_type: str, grids: Grids | None = None, **options: Any) -> Family | Callable[[Grids], Grids]:
    """Declare a model family: `register_family(model_type="mine", grids=grids)`, or as a decorator of `grids`.

    Args:
        model_type: `config.model_type` of its models, not supported yet.
        grids: (config, media) -> one `ImageGrid` per image of the prompt, in order; `media` is a `families.Media`.
        options: what differs from the defaults of `families.Family`: `text_model` and `vision`, the attributes of
            `model.base_model` that hold the decoder layers and the vision tower, and the others described there.
    Returns:
        The `Family`; `grids` itself where used as a decorator.
    Raises:
        VlmpruneError: a bad or taken model type, an unknown option, or one of the wrong type.
    """
    if not isinstance(model_type, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", model_type):
        raise VlmpruneError(f"model_type must be the string in the model's config.model_type, got {model_type!r:.60}.")
    if model_type in FAMILIES:
        raise VlmpruneError(f"The family {model_type!r} is registered already; register another config.model_type.")
    check_options(options)

    def add(function: Grids) -> Grids:
        if not callable(function):
            raise VlmpruneError(f"grids must be a function of (config, media), got {function!r:.60}.")

        @wraps(function)
        def checked(config: Any, media: Media) -> list[ImageGrid]:
            found = function(config, media)
            if not isinstance(found, list | tuple) or not all(isinstance(one, ImageGrid) for one in found):
                raise VlmpruneError(
                    f"grids of the family {model_type!r} returned {found!r:.60}; return a list with one ImageGrid per "
                    "image of the prompt."
                )
            return list(found)

        FAMILIES[model_type] = Family(model_type, checked, **options)
        return function

    if grids is None:
        return add
    add(grids)
    return FAMILIES[model_type]


_PARALLEL = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def inner_model(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, a compiled module or a handle of ours, or the model itself; refused
    inside one that runs it on several devices."""
    for kind in type(model).__mro__:  # by name, since importing FSDP takes long; FSDP shows the model's own attributes
        if kind.__name__ in _PARALLEL:
            replicas = " and use DistributedDataParallel, since DataParallel calls replicas"
            what = f"{kind.__name__} cannot be wrapped, only the model in it; wrap its .module"
            raise UnsupportedModelError(f"{what}{replicas if kind.__name__ == 'DataParallel' else ''}.")
    # torch.compile's, which shows the model's own attributes too.
    if "_orig_mod" in getattr(model, "__dict__", {}).get("_modules", ()):
        return inner_model(model._orig_mod)
    return inner_model(model.get_base_model()) if hasattr(model, "get_base_model") else model


def family_of(model: Any) -> Family:
    """The adapter of a model: declared, else generic.

    Raises:
        UnsupportedModelError: it is no vision-language model, or needs a mechanism that there is none of here.
    """
    model_type, name = getattr(getattr(model, "config", None), "model_type", None), type(model).__name__
    remedy = "load an image-text-to-text model, of one of the types in vlmprune.list_families() or alike"
    if not isinstance(model_type, str) or not hasattr(model, "base_model"):
        what = f"Models of type {model_type!r}" if model_type else f"Objects of type {name!r}"
        raise UnsupportedModelError(f"{what} cannot be wrapped; {remedy}.")
    family = FAMILIES.get(model_type)
    lacking = f"A {name} of type {model_type!r} has no language-model head or no vision part; {remedy}."
    if family is None:
        if not hasattr(model, "generate") and "actions" not in takes(model):  # pi0's: its own sentence
            raise UnsupportedModelError(lacking)
        return generic_family(model)
    if not hasattr(model, "generate") or getattr(model.base_model, family.text_model, None) is None:
        raise UnsupportedModelError(lacking)
    if not hasattr(model.base_model, family.vision):
        raise UnsupportedModelError(
            f"The family {model_type!r} has vision={family.vision!r}, which a {type(model.base_model).__name__} "
            "does not have; register it with the attribute that holds the vision tower."
        )
    return family
