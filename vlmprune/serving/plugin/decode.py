"""How vLLM's server reads the embeddings in a chat request where one of the plugin's models is served.

vLLM decodes them, and puts those of several images together, before a model's own code sees them: a compressed archive,
a sparse tensor or two tensors of different widths would fill the memory by then. Its registry of media connectors is
the place to look earlier. Other models are read as ever.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.media import MediaConnector

from ..payload import FLOATING, BadEmbeddings, Bounds, check_images, decoded

_expected: list[Bounds] = []


def expect(bounds: Bounds) -> None:
    """Of the model that this process serves, of which a connector is told nothing."""
    _expected[:] = [bounds]


class KeptConnector(MediaConnector):
    """`MediaConnector` that reads embeddings as plain tensors, and those of images only."""

    def fetch_image_embedding(self, data: str) -> Tensor:
        if not _expected:
            return super().fetch_image_embedding(data)
        value = decoded(data)
        return value if value.dtype in FLOATING else value.to(torch.int64)

    def fetch_video_embedding(self, data: str) -> Any:
        return super().fetch_video_embedding(_only_images(data))

    def fetch_audio_embedding(self, data: str) -> Any:
        return super().fetch_audio_embedding(_only_images(data))

    async def fetch_image_embedding_async(self, data: str) -> Tensor:
        return await asyncio.to_thread(self.fetch_image_embedding, data)

    async def fetch_video_embedding_async(self, data: str) -> Any:
        return await asyncio.to_thread(self.fetch_video_embedding, data)

    async def fetch_audio_embedding_async(self, data: str) -> Any:
        return await asyncio.to_thread(self.fetch_audio_embedding, data)


def checked_first(merge: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's function that puts the fields of a request's images together, with their checks before it where one of the
    plugin's models is served: on anything else than tensors it ends with status 500."""
    if hasattr(merge, "__wrapped__"):
        return merge

    @functools.wraps(merge)
    def checked(data_items: Any, *args: Any, **options: Any) -> Any:
        if _expected:
            check_images(data_items, _expected[0], whole=True)
        return merge(data_items, *args, **options)

    return checked


def _only_images(data: str) -> str:
    if _expected:
        raise BadEmbeddings("This engine takes embeddings of images only; send videos and sound themselves.")
    return data
