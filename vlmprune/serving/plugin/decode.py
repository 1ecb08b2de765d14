"""How vLLM's server reads the embeddings in a chat request where one of the plugin's models is served.

vLLM decodes them, and puts those of several images together, before a model's own code sees them: a compressed archive,
a sparse tensor or two tensors of different widths would fill the memory by then. Its registry of media connectors is
the place to look earlier. Other models are read as ever.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.media import MediaConnector

from ..payload import FLOATING, GRID, KEPT, ROWS, VISUAL, BadEmbeddings, Bounds, check_rows, decoded, is_plain

_expected: list[Bounds] = []


def expect(bounds: Bounds) -> None:
    """Of the model that this process serves; a connector is headers no model."""
    _expected[:] = [bounds]


def read_tensor(text: Any, bounds: Bounds) -> Tensor:
    """One field of an image: its rows, or one of the short fields of whole numbers.

    Raises:
        BadEmbeddings: it is neither, or larger than an image of this model.
    """
    value = decoded(text)
    if value.dtype in FLOATING:
        return check_rows(value, bounds.width, bounds.visual)
    if not is_plain(value) or value.dim() != 1 or not 1 <= len(value) <= max(3, bounds.visual):
        raise BadEmbeddings(
            f"A field of whole numbers has {value.dim()} dimensions and {value.numel()} numbers; those of an image "
            f"have one dimension and 1 to {max(3, bounds.visual)} numbers."
        )
    return value.to(torch.int64)


class KeptConnector(MediaConnector):
    """`MediaConnector` that reads embeddings within the bounds of the served model, and those of images only."""

    def fetch_image_embedding(self, data: str) -> Tensor:
        return read_tensor(data, _expected[0]) if _expected else super().fetch_image_embedding(data)

    async def fetch_image_embedding_async(self, data: str) -> Tensor:
        if not _expected:
            return await super().fetch_image_embedding_async(data)
        return await asyncio.to_thread(read_tensor, data, _expected[0])

    def fetch_video_embedding(self, data: str) -> Any:
        return super().fetch_video_embedding(_only_images(data))

    async def fetch_video_embedding_async(self, data: str) -> Any:
        return await super().fetch_video_embedding_async(_only_images(data))

    def fetch_audio_embedding(self, data: str) -> Any:
        return super().fetch_audio_embedding(_only_images(data))

    async def fetch_audio_embedding_async(self, data: str) -> Any:
        return await super().fetch_audio_embedding_async(_only_images(data))


def check_fields(images: Sequence[Mapping[str, Any]]) -> None:
    """The fields of all images of a request, before they are put together.

    Raises:
        BadEmbeddings: one is unknown, or no tensor: vLLM decodes texts and leaves null and numbers as they are.
    """
    for fields in images:
        for name, value in fields.items():
            if name not in (ROWS, KEPT, VISUAL, GRID):
                raise BadEmbeddings(f"image_embeds has the field {name!r:.40}; send what Encoder.chat_part returns.")
            if not isinstance(value, Tensor) or value.dim() != (2 if name == ROWS else 1):
                raise BadEmbeddings(f"The field {name!r} of an image is not what Encoder.chat_part returns; send that.")


def checked_first(merge: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's function that puts the fields of a request's images together, with `check_fields` before it where one of
    the plugin's models is served: on anything else than tensors it ends with status 500."""
    if hasattr(merge, "__wrapped__"):
        return merge

    @functools.wraps(merge)
    def checked(data_items: Any, *args: Any, **options: Any) -> Any:
        if _expected:
            check_fields(data_items)
        return merge(data_items, *args, **options)

    return checked


def _only_images(data: str) -> str:
    if _expected:
        raise BadEmbeddings("This engine takes embeddings of images only; send videos and sound themselves.")
    return data
