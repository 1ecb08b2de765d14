"""A chat request on its way through guide and tower; those of different requests run side by side, in batches."""

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import jinja2
from prometheus_client import Histogram

from ..errors import VlmpruneError
from .batch_worker import BatchWorker
from .chat import Chat, Claim, ImagePart, Limits, check_pixels, pixels_of
from .encoded import Encoded, Ranking
from .encoder import MAX_NEW_TOKENS, Encoder
from .fields import Refused
from .metrics import Metrics
from .payload import BadEmbeddings

R = TypeVar("R")


@dataclass(frozen=True)
class _Job:
    """Work for the guide, or, with its `ranking` if there is a guide, for the tower. Images are still files: what waits
    takes no more memory than it came with."""

    chat: Chat
    max_new_tokens: int = 0
    exits: bool = False
    ranking: Ranking | None = None


class Pipeline:
    """An encoder behind two stages.

    Args:
        fetch: a client for images on the web. batch: the largest batch.

    Where a client asks for more than `MAX_NEW_TOKENS` and the guide does not end by then, it does not exit.
    """

    def __init__(
        self, encoder: Encoder, limits: Limits, metrics: Metrics, fetch: httpx.AsyncClient, batch: int
    ) -> None:
        self.encoder, self.limits, self.metrics, self.fetch = encoder, limits, metrics, fetch
        self._unpacking = threading.Lock()
        options: dict[str, Any] = {
            "most": batch,
            "alike": lambda job: (job.max_new_tokens, job.exits),
            "weight": lambda job: job.chat.pixels,
            "heaviest": limits.request_pixels,
        }
        self._guide: BatchWorker[_Job, Ranking] = BatchWorker("guide", self._rank, **options)
        self._vision: BatchWorker[_Job, Encoded] = BatchWorker("vision tower", self._embed, **options)

    def _inputs(self, jobs: list[_Job], guide: bool) -> Mapping[str, Any]:
        """What a processor makes of their conversations. Only here images are unpacked, by one stage at a time."""
        with self._unpacking:
            return self.encoder.inputs([job.chat.talk(self.limits.pixels) for job in jobs], guide=guide)

    def _rank(self, jobs: list[_Job]) -> list[Ranking]:
        inputs, first = self._inputs(jobs, True), jobs[0]
        return self.encoder.rank_inputs(inputs, max_new_tokens=first.max_new_tokens, exits=first.exits)

    def _embed(self, jobs: list[_Job]) -> list[Encoded]:
        rankings = [job.ranking for job in jobs if job.ranking is not None]
        inputs = self._inputs(jobs, False)
        return self.encoder.encode_inputs(inputs, rankings or None, [job.chat.keep for job in jobs])

    async def prepare(self, chat: Chat, held: Claim, pixels: Claim) -> Encoded | Ranking:
        """What the engine is handed for a request with images, or the guide's answer where that stands.

        Args:
            held, pixels: the request's part of what all may hold, to which fetched images are added.
        Raises:
            Refused: an image cannot be had, guide or tower fail, or they take too long.
        """
        try:
            async with asyncio.timeout(self.limits.prepare):
                chat = await self._fetched(chat, held)
                pixels.add(chat.pixels)
                ranking = None
                if self.encoder.guided:
                    longest = min(chat.max_tokens or MAX_NEW_TOKENS, MAX_NEW_TOKENS)
                    exit_at = chat.exit_at if chat.plain else None
                    job = _Job(chat, longest, exit_at is not None)
                    ranking = await self._result(self._guide, job, self.metrics.guide)
                    whole = ranking.finished or (chat.max_tokens is not None and chat.max_tokens <= longest)
                    if whole and ranking.exits(exit_at):
                        return ranking
                return await self._result(self._vision, _Job(chat, ranking=ranking), self.metrics.vision)
        except TimeoutError:
            raise Refused(
                f"Guide and vision tower took longer than {self.limits.prepare:g} seconds; try again later.", 504
            ) from None

    async def _result(self, stage: BatchWorker[_Job, R], job: _Job, timer: Histogram) -> R:
        """A stage's result, its failures as answers for the client."""
        start = time.perf_counter()
        try:
            result = await stage.result(job)
        except BadEmbeddings as error:
            raise Refused(f"The {stage.name} failed: {error}", 500) from error
        except VlmpruneError:
            raise
        except jinja2.TemplateError as error:
            raise Refused(f"The chat template does not take these messages ({error}).") from error
        except Exception as error:
            kind = type(error).__name__
            raise Refused(f"The {stage.name} failed on this request ({kind}); see the log.", 500) from error
        timer.observe((time.perf_counter() - start) * 1e3)
        return result

    async def _fetched(self, chat: Chat, held: Claim) -> Chat:
        """The request with its images on the web fetched."""
        images: list[ImagePart] = []
        left = self.limits.body
        for image in chat.images:
            if image.url is not None:
                content = await self._web_file(image.url, left)
                held.add(len(content))
                left -= len(content)
                image = ImagePart(content, pixels=pixels_of(content, self.limits))
            images.append(image)
            check_pixels(images, self.limits)
        return replace(chat, images=tuple(images))

    async def _web_file(self, url: str, most: int) -> bytes:
        content = bytearray()
        try:
            async with self.fetch.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise Refused(f"The image's address answers with status {answer.status_code}; check it.")
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > most:
                        raise Refused(f"The images have more than {self.limits.body:,} bytes; send smaller ones.", 413)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Refused(f"The image cannot be fetched ({type(error).__name__}); check its address.") from None
        return bytes(content)
