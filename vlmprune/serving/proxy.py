"""An OpenAI-compatible proxy in front of a vLLM server: it prunes images, answers where the guide is confident, and
passes on everything else.

Nothing here knows vLLM: what goes out are chat requests whose images are `image_embeds` parts.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from ..errors import VlmpruneError
from .access import ACCESS, AccessLog
from .answers import engine_failure, exit_response, refusal
from .chat import Chat, Claim, Limits, Quota, read_chat
from .encoded import Encoded, Ranking
from .encoder import Encoder
from .engine import EngineClient, written
from .fields import Refused, read_json, rebuilt
from .metrics import Metrics
from .payload import checked_parts
from .pipeline import Pipeline, Rank
from .text_routes import READ, WRITE

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProxySettings:
    """How a proxy runs.

    `engine`: the server's address, "http://127.0.0.1:8000". `key`: sent to it in place of a client's. `exit_at`: where
    a request names none; None is the method's. `image_urls`: whether images are fetched from the web. `embeddings`:
    whether clients may send images that they encoded themselves. `keep_choices`: whether the images of a conversation
    keep the visual tokens that were chosen in their own turn. `access_log`: "off", "text" or "json".
    """

    engine: str
    key: str | None = field(default=None, repr=False)
    exit_at: float | None = None
    image_urls: bool = False
    embeddings: bool = False
    batch: int = 8
    keep_choices: bool = True
    access_log: str = "off"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.access_log not in ("off", "text", "json"):
            raise VlmpruneError(f"access_log={self.access_log!r:.40} is unknown; use 'off', 'text' or 'json'.")


class Proxy:
    """One proxy's state, between its start and its end."""

    def __init__(self, encoder: Encoder, settings: ProxySettings, rank: Rank | None = None) -> None:
        self.encoder, self.settings, self.limits = encoder, settings, settings.limits
        self.exit_at = settings.exit_at if settings.exit_at is not None else encoder.exit_at
        self.metrics = Metrics()
        self.requests = Quota(self.limits.requests, "The server has as many requests as it may")
        self.metrics.in_flight.set_function(lambda: self.requests.used)
        self.bodies = Quota(self.limits.open_bodies, "The server holds as many bytes of requests as it may")
        self.pixels = Quota(self.limits.open_pixels, "The server has as many pixels waiting as it may")
        self._reading = asyncio.Semaphore(1)  # a request's text is held three times while it is read
        self.engine = EngineClient(settings.engine, settings.key, self.limits, self.metrics)
        self.fetch = httpx.AsyncClient(timeout=10.0, trust_env=False)  # follows no redirect
        self.pipeline = Pipeline(
            encoder, self.limits, self.metrics, self.fetch,
            batch=settings.batch, keep_choices=settings.keep_choices, rank=rank,
        )  # fmt: skip

    # -- a request ---------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        with self.bodies.claim() as held:
            raw = await self._body(request, held)
            return await until_disconnect(request, self._answer(request, raw, held))

    async def text(self, request: Request) -> Response:
        """POST to a route that takes no images: read, rebuilt from its fields, and passed on."""
        with self.bodies.claim() as held:
            raw = await self._body(request, held)

            async def answer() -> Response:
                async with self._reading:
                    body = await asyncio.to_thread(read_json, raw, self.limits.values)
                    raw.clear()
                    body = rebuilt(body, WRITE[request.url.path])
                    content = await asyncio.to_thread(self._written, body)
                held.keep(len(content))
                return await self.engine.forward(request, content, stream=body.get("stream") is True)

            return await until_disconnect(request, answer())

    async def read(self, request: Request) -> Response:
        """GET of what the engine says of itself, or of an answer that it has stored."""
        one = request.path_params.get("id", "id")
        if not (one.isascii() and one.replace("_", "").replace("-", "").isalnum()):
            raise HTTPException(404)
        return await self.engine.forward(request)

    async def _answer(self, request: Request, raw: bytearray, held: Claim) -> Response:
        settings = self.settings
        async with self._reading:
            chat = await asyncio.to_thread(
                read_chat, raw, self.limits, self.exit_at, embeddings=settings.embeddings, urls=settings.image_urls
            )
        if chat.keep is not None and self.encoder.rows_of_an_image is not None:
            raise Refused("vlmprune: keep cannot be chosen here, since the engine takes as many rows of every image.")
        ready: Encoded | None = None
        headers: dict[str, str] = {}
        if chat.images and not chat.embedded:
            # A guide's answer stands for a model that the engine has, and only for who may use it there.
            model = await self.engine.model(request, chat.body.get("model")) if self.encoder.guided else None
            with self.pixels.claim() as pixels:
                asked = chat if model is not None else replace(chat, exit_at=None)
                chat, prepared = await self.pipeline.prepare(asked, held, pixels)
            if isinstance(prepared, Ranking):
                self.metrics.exits.inc()
                return exit_response({**chat.body, "model": model}, prepared)
            ready = prepared
            del prepared, asked
            self.metrics.tokens_in.inc(ready.visual_tokens)
            self.metrics.tokens_kept.inc(ready.kept_tokens)
            headers["x-vlmprune-visual-tokens"] = str(ready.visual_tokens)
            headers["x-vlmprune-kept-tokens"] = str(ready.kept_tokens)
        stream = chat.body.get("stream") is True
        content = await asyncio.to_thread(self._content, chat, ready)
        del chat, ready  # while the engine answers, only what it was sent is kept
        held.keep(len(content))
        return await self.engine.forward(request, content, headers, stream=stream)

    def _content(self, chat: Chat, ready: Encoded | None) -> bytes:
        """The request as the engine gets it, written again with what stands for its images."""
        parts = ready.parts() if ready is not None else []
        if chat.embedded:
            given = [image.embeddings for image in chat.images]
            parts = checked_parts(given, self.encoder.bounds, self.encoder.positions)
        return self._written(chat.with_parts(parts))

    def _written(self, body: dict[str, Any]) -> bytes:
        try:
            return written(body)
        except ValueError:
            raise Refused("The request holds a number that is not finite; leave it out.") from None

    async def _body(self, request: Request, held: Claim) -> bytearray:
        too_large = Refused(f"The request has more than {self.limits.body:,} bytes; send smaller images.", 413)
        length = request.headers.get("content-length", "")
        # Nothing is believed but that it is too long.
        if length.isascii() and length.isdecimal() and len(length) < 20 and int(length) > self.limits.body:
            raise too_large
        content = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload):
                async for piece in request.stream():
                    if len(content) + len(piece) > self.limits.body:
                        raise too_large
                    held.add(len(piece))
                    content += piece
        except TimeoutError:
            raise Refused(f"The request took longer than {self.limits.upload:g} seconds to arrive.", 408) from None
        return content

    # -- about the server --------------------------------------------------------------------------------------

    async def health(self, request: Request) -> Response:
        """GET /health: this process lives; whoever looks starts it again where it does not."""
        return JSONResponse({"proxy": True})

    async def ready(self, request: Request) -> Response:
        """GET /ready: whether the engine behind takes requests too."""
        engine = await self.engine.ready()
        state = {"proxy": True, "engine": engine, "requests": self.requests.used}
        return JSONResponse(state, 200 if engine else 503)

    async def counted(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format: this server's, then the engine's."""
        both = generate_latest(self.metrics.registry) + await self.engine.metrics_text()
        return Response(both, media_type="text/plain; version=0.0.4")

    async def refuse(self, request: Request, error: Any) -> Response:
        """The answer to a request that failed, here or on its way to the engine."""
        cause = error.__cause__
        if isinstance(error, HTTPException):
            known = ", ".join(["/v1/chat/completions", *WRITE, *READ])
            said = f"{request.method} {request.url.path!r:.100} is not served here; routes are {known}."
            return refusal(Refused(said, error.status_code))
        if isinstance(error, httpx.HTTPError):
            cause, error = error, engine_failure(error)
        answer = refusal(error)
        if answer.status_code >= 500:
            _log.warning("%s %s: %s", request.state.request_id, answer.status_code, error, exc_info=cause)
        return answer


class ConcurrencyLimit:
    """ASGI middleware that counts the open requests, from their first byte to the last of their answer, and refuses
    those that are too many."""

    def __init__(self, app: Any, proxy: Proxy) -> None:
        self.app, self.proxy = app, proxy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self.proxy.requests.claim() as place:
            try:
                place.add(1)
            except Refused as full:
                await refusal(full)(scope, receive, send)
            else:
                await self.app(scope, receive, send)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The result of `work`, which ends with the client's connection.

    Raises:
        Refused: the client has hung up.
    """
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=0.1)
            if not task.done() and await request.is_disconnected():
                raise Refused("The client has hung up.", 499)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def create_app(encoder: Encoder, settings: ProxySettings, *, rank: Rank | None = None) -> FastAPI:
    """The proxy as an application: `/v1/chat/completions`, the routes of `text_routes`, `/health`, `/ready`,
    `/metrics`.

    Args:
        rank: asks guides elsewhere instead of the encoder's own.
    """
    proxy = Proxy(encoder, settings, rank)
    limited = [Middleware(ConcurrencyLimit, proxy=proxy)]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with proxy.engine.client, proxy.fetch:
            yield

    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((VlmpruneError, httpx.HTTPError, HTTPException), proxy.refuse),
        middleware=[Middleware(AccessLog, metrics=proxy.metrics, form=settings.access_log)],
        routes=[
            Route("/v1/chat/completions", proxy.chat, methods=["POST"], middleware=limited),
            *(Route(path, proxy.text, methods=["POST"], middleware=limited) for path in WRITE),
            *(Route(path, proxy.read, middleware=limited) for path in READ),
            Route("/health", proxy.health),
            Route("/ready", proxy.ready),
            Route("/metrics", proxy.counted),
        ],
    )
    app.state.proxy = proxy
    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until told to stop; open requests are answered first, for as long as `Limits.drain`. The access log goes to
    stderr."""
    import uvicorn

    ACCESS.addHandler(logging.StreamHandler())
    ACCESS.setLevel(logging.INFO)
    ACCESS.propagate = False
    drain = int(app.state.proxy.limits.drain)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=drain, access_log=False)
