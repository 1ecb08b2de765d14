"""Arguments of a forward or a `generate`: on the model's device, which describe images and videos, where padding is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .compatibility import CACHE_NAMES

_PIXELS = ("pixel_values", "pixel_values_images", "image_patches", "cross_attention_states")
_VIDEO_PIXELS = "pixel_values_videos"


def to_device(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device, floating-point ones in its precision.

    They stay where they are if accelerate keeps the model's first weights elsewhere, on the disk for example, and moves
    inputs by itself.
    """
    device = None if model.device.type == "meta" else model.device

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device=device, dtype=model.dtype if value.is_floating_point() else None)

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


def media_metadata(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments that describe images and videos, without the pixels and features themselves; of the pixels of videos
    their shape, as `video_shape`."""
    heavy = (*_PIXELS, *CACHE_NAMES, _VIDEO_PIXELS, "inputs_embeds", "mm_encoder_outputs", "input_ids")
    found = {k: v for k, v in arguments.items() if v is not None and k not in heavy}
    shape = getattr(arguments.get(_VIDEO_PIXELS), "shape", None)
    return found if shape is None else found | {"video_shape": tuple(shape)}


def feature_rows(features: Any) -> list[int] | None:
    """How many rows each image (or video) has in what encodes them returned, None where it does not say."""
    rows = getattr(features, "pooler_output", features)
    if rows is None:  # Llama 4 projects what its tower returns afterwards
        rows = getattr(features, "last_hidden_state", None)
    if isinstance(rows, Tensor):
        return [rows.shape[1]] * len(rows) if rows.dim() == 3 else None
    return [len(one) for one in rows] if isinstance(rows, list | tuple) else None


def described(features: Any) -> dict[str, Any]:
    """What `get_image_features` (or that of videos) returned says: features of each, how many its tower has encoded."""
    hidden = getattr(features, "last_hidden_state", None)
    images = len(hidden) if isinstance(hidden, Tensor) and hidden.dim() == 3 else None  # [images, patches, D]
    return {"feature_rows": feature_rows(features), "encoded_images": images}


def handed(given: dict[str, Any], kind: str) -> Any:
    """Features of images or videos that were handed over, as `generate` does after its own vision stage; else None."""
    outputs = given.get("mm_encoder_outputs")
    if isinstance(outputs, dict):
        return outputs.get(kind)
    return outputs if kind == "image" else None


def has(given: dict[str, Any], kind: str) -> bool:
    """Whether this forward brings an "image" or a "video", as pixels or as features.

    The frames of SmolVLM's and InternVL's videos come as images.
    """
    names = (_VIDEO_PIXELS,) if kind == "video" else _PIXELS
    return any(given.get(name) is not None for name in names) or handed(given, kind) is not None


def has_visuals(given: dict[str, Any]) -> bool:
    """Whether this forward brings an image or a video."""
    return has(given, "image") or has(given, "video")


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
