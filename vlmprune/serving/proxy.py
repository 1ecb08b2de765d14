"""An OpenAI-compatible proxy in front of a vLLM server: it prunes images, answers where the guide is confident, and
passes on everything else.

Nothing here knows vLLM: what goes out are chat requests whose images are `image_embeds` parts.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import generate_latest
from starlette.middleware import Middleware
from starlette.routing import Route

from ..errors import VlmpruneError
from .answers import SSE, engine_failure, exit_response, refusal
from .chat import Chat, Claim, Limits, Quota, read_chat
from .encoded import Encoded, Ranking
from .encoder import Encoder
from .fields import Refused
from .metrics import Metrics
from .payload import checked_parts
from .pipeline import Pipeline

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProxySettings:
    """How a proxy runs.

    `engine`: the server's address, "http://127.0.0.1:8000". `key`: sent to it in place of a client's. `exit_at`: where
    a request names none; None is the method's. `image_urls`: whether images are fetched from the web. `embeddings`:
    whether clients may send images that they encoded themselves.
    """

    engine: str
    key: str | None = field(default=None, repr=False)
    exit_at: float | None = None
    image_urls: bool = False
    embeddings: bool = False
    batch: int = 8
    limits: Limits = field(default_factory=Limits)


class Proxy:
    """One proxy's state, between its start and its end."""

    def __init__(self, encoder: Encoder, settings: ProxySettings) -> None:
        self.encoder, self.settings, self.limits = encoder, settings, settings.limits
        self.exit_at = settings.exit_at if settings.exit_at is not None else encoder.exit_at
        self.metrics = Metrics()
        self.requests = Quota(self.limits.requests, "The server has as many requests as it may")
        self.metrics.in_flight.set_function(lambda: self.requests.used)
        self.bodies = Quota(self.limits.open_bodies, "The server holds as many bytes of requests as it may")
        self.pixels = Quota(self.limits.open_pixels, "The server has as many pixels waiting as it may")
        self._reading = asyncio.Semaphore(1)  # a request's text is held three times while it is read
        timeout = httpx.Timeout(self.limits.engine, connect=5.0, pool=self.limits.engine)
        connections = httpx.Limits(max_connections=None, max_keepalive_connections=self.limits.requests)
        # Neither client follows a redirect or reads proxies from the environment.
        self.engine = httpx.AsyncClient(base_url=settings.engine, timeout=timeout, limits=connections, trust_env=False)
        self.fetch = httpx.AsyncClient(timeout=10.0, trust_env=False)
        self.pipeline = Pipeline(encoder, self.limits, self.metrics, self.fetch, settings.batch)

    # -- a request ---------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        with self.bodies.claim() as held:
            raw = await self._body(request, held)
            return await until_disconnect(request, self._answer(request, raw, held))

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
            with self.pixels.claim() as pixels:
                prepared = await self.pipeline.prepare(chat, held, pixels)
            if isinstance(prepared, Ranking):
                self.metrics.exits.inc()
                return exit_response(chat.body, prepared)
            ready = prepared
            del prepared
            self.metrics.tokens_in.inc(ready.visual_tokens)
            self.metrics.tokens_kept.inc(ready.kept_tokens)
            headers["x-vlmprune-visual-tokens"] = str(ready.visual_tokens)
            headers["x-vlmprune-kept-tokens"] = str(ready.kept_tokens)
        content = await asyncio.to_thread(self._content, chat, ready)
        del chat, ready  # while the engine answers, only what it was sent is kept
        held.keep(len(content))
        return await self.forward(request, content, headers)

    def _content(self, chat: Chat, ready: Encoded | None) -> bytes:
        """The request as the engine gets it, written again with what stands for its images."""
        parts = ready.parts() if ready is not None else []
        if chat.embedded:
            given = [image.embeddings for image in chat.images]
            parts = checked_parts(given, self.encoder.bounds, self.encoder.positions)
        try:
            return json.dumps(chat.with_parts(parts), allow_nan=False).encode()
        except ValueError:  # NaN or 1e999 in a schema
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

    # -- the engine --------------------------------------------------------------------------------------------

    async def forward(
        self, request: Request, content: bytes = b"", headers: dict[str, str] | None = None
    ) -> Response:
        """The engine's answer to a request of these bytes; GET /v1/models as it is.

        Args:
            headers: added to the answer's.
        """
        key = f"Bearer {self.settings.key}" if self.settings.key else request.headers.get("authorization")
        # In bytes, as it came: httpx would write a text in ASCII.
        sent = {b"Content-Type": b"application/json"} | ({b"Authorization": key.encode("latin-1")} if key else {})
        outgoing = self.engine.build_request(request.method, request.url.path, content=content, headers=sent)
        answer = await self.engine.send(outgoing, stream=True)
        kind = answer.headers.get("content-type", "application/json")
        if answer.status_code == 200 and kind.startswith(SSE):
            return StreamingResponse(self._relayed(answer), 200, headers, SSE)
        try:
            said = await answer.aread()
        finally:
            await answer.aclose()
        if answer.status_code >= 500:
            raise Refused(f"The engine answers with status {answer.status_code}; see its log.", 502)
        return Response(said, answer.status_code, headers, kind)

    async def _relayed(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """The engine's stream; where it breaks off, an error takes the place of what was to come."""
        end = b"\ndata: [DONE]"  # a line of its own: within JSON there are no line ends
        last, ended = b"\n", False
        try:
            async for piece in answer.aiter_bytes():
                ended = ended or end in last + piece
                last = (last + piece)[-len(end) :]
                yield piece
            if not ended:
                raise httpx.ReadError("the stream ended without [DONE]")
        except httpx.HTTPError as error:
            self.metrics.broken_streams.labels("engine").inc()
            refused = engine_failure(error, self.limits.engine)
            _log.warning("stream: %s", refused)
            yield b"\n\ndata: " + bytes(refusal(refused).body) + b"\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.broken_streams.labels("client").inc()
            raise
        finally:
            await answer.aclose()

    async def health(self, request: Request) -> Response:
        """GET /health: this server and the engine behind it."""
        try:
            engine = (await self.engine.get("/health", timeout=2.0)).status_code == 200
        except httpx.HTTPError:
            engine = False
        state = {"proxy": True, "engine": engine, "requests": self.requests.used}
        return JSONResponse(state, 200 if engine else 503)

    async def counted(self, request: Request) -> Response:
        """GET /metrics, in Prometheus' text format."""
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    async def refuse(self, request: Request, error: Any) -> Response:
        """The answer to a request that failed, here or on its way to the engine."""
        cause = error.__cause__
        if isinstance(error, httpx.HTTPError):
            cause, error = error, engine_failure(error, self.limits.engine)
        answer = refusal(error)
        if answer.status_code >= 500:
            _log.warning("%s: %s", answer.status_code, error, exc_info=cause)
        return answer


class ConcurrencyLimit:
    """ASGI middleware that counts the open requests, from their first byte to the last of their answer, and refuses
    those that are too many."""

    def __init__(self, app: Any, proxy: Proxy) -> None:
        self.app, self.proxy = app, proxy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.proxy.metrics.requests.labels(message["status"]).inc()
            await send(message)

        with self.proxy.requests.claim() as place:
            try:
                place.add(1)
            except Refused as full:
                await refusal(full)(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)


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


def create_app(encoder: Encoder, settings: ProxySettings) -> FastAPI:
    """The proxy as an application: `/v1/chat/completions`, `/v1/models`, `/health`, `/metrics`."""
    proxy = Proxy(encoder, settings)
    limited = Middleware(ConcurrencyLimit, proxy=proxy)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with proxy.engine, proxy.fetch:
            yield

    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lifespan,
        exception_handlers=dict.fromkeys((VlmpruneError, httpx.HTTPError), proxy.refuse),
        routes=[
            Route("/v1/chat/completions", proxy.chat, methods=["POST"], middleware=[limited]),
            Route("/v1/models", proxy.forward),
            Route("/health", proxy.health),
            Route("/metrics", proxy.counted),
        ],
    )
    app.state.proxy = proxy
    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until told to stop; open requests are answered first, for as long as `Limits.drain`."""
    import uvicorn

    drain = int(app.state.proxy.limits.drain)
    uvicorn.run(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=drain, access_log=False
    )
