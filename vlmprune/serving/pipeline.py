"""A chat request on its way through guide and tower; those of different requests run side by side, in batches."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import jinja2
from prometheus_client import Histogram

from ..errors import VlmpruneError
from .batch_worker import BatchWorker
from .chat import Chat, Claim, ImagePart, Limits, check_pixels, pixels_of
from .encoded import Encoded, KeptImage, Ranking
from .encoder import MAX_NEW_TOKENS, Encoder
from .fields import Refused
from .memory import Memory
from .metrics import Metrics
from .payload import BadEmbeddings

R = TypeVar("R")
# A conversation, the longest answer of the guide, and whether that may be used.
Rank = Callable[[Chat, int, bool], Awaitable[Ranking]]


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
        fetch: a client for images on the web. batch: the largest batch. keep_choices: whether an image keeps the visual
            tokens that were chosen in the turn that brought it; else every turn chooses again.
        rank: asks a guide elsewhere instead of the encoder's own.

    Where a client asks for more than `MAX_NEW_TOKENS` and the guide does not end by then, it does not exit.
    """

    def __init__(
        self,
        encoder: Encoder,
        limits: Limits,
        metrics: Metrics,
        fetch: httpx.AsyncClient,
        *,
        batch: int = 8,
        keep_choices: bool = True,
        rank: Rank | None = None,
    ) -> None:
        self.encoder, self.limits, self.metrics, self.fetch = encoder, limits, metrics, fetch
        self.memory, self.keep_choices = Memory(limits.cache), keep_choices
        metrics.remembered.set_function(lambda: self.memory.used)
        self._unpacking = threading.Lock()
        options: dict[str, Any] = {
            "most": batch,
            "alike": lambda job: (job.max_new_tokens, job.exits),
            "weight": lambda job: job.chat.pixels,
            "heaviest": limits.request_pixels,
        }
        guide: BatchWorker[_Job, Ranking] = BatchWorker("guide", self._rank, **options)
        self._ask: Rank = rank or (lambda *job: guide.result(_Job(*job)))
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
        return self.encoder.encode_inputs(inputs, rankings or None, [job.chat.keep for job in jobs], self.memory)

    async def prepare(self, chat: Chat, held: Claim, pixels: Claim) -> tuple[Chat, Encoded | Ranking]:
        """The request as it goes on, with what the engine is handed for its images, or the guide's answer where that
        stands.

        Args:
            held, pixels: the request's part of what all may hold, to which fetched images are added.
        Raises:
            Refused: an image cannot be had, guide or tower fail, or they take too long.
        """
        try:
            async with asyncio.timeout(self.limits.prepare):
                # A text that holds a model's mark of an image would be given an image's tokens.
                chat = (await self._fetched(chat, held)).as_words(self.encoder.image_tokens)
                return chat, await self._prepared(chat, pixels)
        except TimeoutError:
            raise Refused(
                f"Guide and vision tower took longer than {self.limits.prepare:g} seconds; try again later.", 504
            ) from None

    async def _prepared(self, chat: Chat, pixels: Claim) -> Encoded | Ranking:
        longest, ranking = min(chat.max_tokens or MAX_NEW_TOKENS, MAX_NEW_TOKENS), None
        if self.encoder.guided and chat.exit_at is not None:
            pixels.add(chat.pixels)
            ranking = await self._ranking(chat, longest, True)
            # Cut off where the engine would be, which counts in tokens of the large model.
            cut = self.encoder.same_tokens and chat.max_tokens is not None and chat.max_tokens <= longest
            if (ranking.finished or cut) and ranking.exits(chat.exit_at):
                return ranking
        images: list[KeptImage] = []
        turns = chat.turns() if self.keep_choices else [chat]
        for turn in turns:
            # An image keeps what was chosen when its turn was new: the engine then finds in its prefix cache what it
            # computed for that turn. What was forgotten is chosen again from the same messages.
            now = turn.messages == chat.messages
            key = turn.key()
            kept = None if now else self.memory.get(key)
            if kept is None:
                if not now or ranking is None:
                    pixels.add(turn.pixels)
                own = ranking if now else None
                if self.encoder.guided and own is None:
                    own = await self._ranking(turn, longest, False)
                job = self._vision.result(_Job(turn, ranking=own))
                made = await self._result("vision tower", job, self.metrics.vision)
                kept = made.images[len(images) :]
                self.memory.put(key, kept, sum(image.rows.nbytes for image in kept))
            else:
                self.metrics.kept_choices.inc(len(kept))
            images += kept
        ready = Encoded([], tuple(images), self.encoder.positions)
        if turns[-1].messages != chat.messages:  # where they are equal, the tower's stage has counted
            await asyncio.to_thread(self.encoder.check_texts, chat.texts, ready.visual_tokens)
        return ready

    async def _ranking(self, chat: Chat, longest: int, exits: bool) -> Ranking:
        return await self._result("guide", self._ask(chat, longest, exits), self.metrics.guide)

    async def _result(self, name: str, work: Awaitable[R], timer: Histogram) -> R:
        """A stage's result, its failures as answers for the client."""
        start = time.perf_counter()
        try:
            result = await work
        except BadEmbeddings as error:
            raise Refused(f"The {name} failed: {error}", 500) from error
        except VlmpruneError:
            raise
        except jinja2.TemplateError as error:
            raise Refused(f"The chat template does not take these messages ({error}).") from error
        except Exception as error:
            kind = type(error).__name__
            raise Refused(f"The {name} failed on this request ({kind}); see the log.", 500) from error
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
