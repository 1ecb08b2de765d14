"""The arguments of a forward or a `generate`: on the model's device, which describe images, where padding is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ..errors import VIDEO, VlmpruneError
from .compatibility import CACHE_NAMES

_PIXELS = ("pixel_values", "pixel_values_images", "cross_attention_states")


def to_device(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device, floating-point ones in its precision."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(model.device, model.dtype if value.is_floating_point() else None)

    return {name: moved(value) for name, value in inputs.items()}


def host_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of whole numbers, of any shapes, on the CPU: in one copy where one device has them all, to wait once."""
    if len({tensor.device for tensor in tensors}) != 1 or tensors[0].device.type == "cpu":
        return [tensor.cpu() for tensor in tensors]
    flat = torch.cat([tensor.flatten().long() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The key-value cache among the arguments of a forward or of `generate`, None where there is none."""
    return next((arguments[name] for name in CACHE_NAMES if hasattr(arguments.get(name), "layers")), None)


def image_metadata(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that describe images, without the pixels and features themselves."""
    heavy = (*_PIXELS, *CACHE_NAMES, "pixel_values_videos", "inputs_embeds", "mm_encoder_outputs", "input_ids")
    return {k: v for k, v in arguments.items() if v is not None and k not in heavy}


def encoded(given: dict[str, Any], kind: str) -> bool:
    """Whether features of images or videos were handed over, as `generate` does after its own vision stage."""
    outputs = given.get("mm_encoder_outputs")
    return outputs is not None and (not isinstance(outputs, dict) or outputs.get(kind) is not None)


def refuse_video(given: Mapping[str, Any]) -> None:
    """Raise where a forward or a `generate` is given a video, as pixels or as features.

    The frames of SmolVLM's and InternVL's videos come as `pixel_values` between image tokens, like so many images;
    nothing but the words around them differs, so these run, every frame as an image.
    """
    if given.get("pixel_values_videos") is not None or encoded(dict(given), "video"):
        raise VlmpruneError(VIDEO)


def has_image(given: dict[str, Any]) -> bool:
    """Whether this forward brings an image, as pixels or as features."""
    return any(given.get(name) is not None for name in _PIXELS) or encoded(given, "image")


def padding_mask(mask: Any, ids: Tensor) -> Tensor:
    """Bool [B, S] from whatever mask the base model got: 2-D, prepared 4-D (a dict of them), a function, or None."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if isinstance(mask, BlockMask):
        batch, position = (torch.arange(size, device=ids.device) for size in ids.shape)
        own = mask.mask_mod(batch[:, None], batch.new_zeros(()), position, position)
        return own.expand(ids.shape)
    if not isinstance(mask, Tensor):
        return torch.ones_like(ids, dtype=torch.bool)
    if mask.dim() == 4:  # what is no padding sees itself, whatever window or chunk it looks through
        own = mask[:, 0].diagonal(dim1=1, dim2=2)[:, : ids.shape[1]]
        mask = (own if own.dtype == torch.bool else own == 0).expand(len(ids), -1)
    return mask[:, : ids.shape[1]].bool()  # one that is wider covers pieces of the prompt that come later


def setting(model: Any, kwargs: dict[str, Any], name: str) -> Any:
    """A generation setting as `generate` would see it: from the call, its config, or the model's."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    value = getattr(kwargs.get("generation_config"), name, None)
    return getattr(model.generation_config, name, None) if value is None else value
