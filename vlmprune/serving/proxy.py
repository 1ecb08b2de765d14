"""An OpenAI-compatible proxy in front of a vLLM server: it prunes images, answers what the guide is sure of, and
passes on everything else.

Nothing here knows vLLM: what goes out are chat requests whose images are `image_embeds` parts.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .answers import SSE, engine_failure, error_body, exit_response
from .chat import Chat, Claim, Limits, Quota, read_chat
from .encoded import Encoded
from .encoder import MAX_NEW_TOKENS, Encoder
from .fields import Refused
from .metrics import Metrics
from .payload import BadEmbeddings, checked_parts
from .pipeline import Exit, Pipeline

_log = logging.getLogger(__name__)
_RETRY = {"Retry-After": "1"}
R = TypeVar("R")


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
    guide_tokens: int = MAX_NEW_TOKENS
    batch: int = 8
    limits: Limits = field(default_factory=Limits)


class Proxy:
    """One proxy's state, between its start and its end."""

    def __init__(self, encoder: Encoder, settings: ProxySettings) -> None:
        self.encoder, self.settings, self.limits = encoder, settings, settings.limits
        self.exit_at = settings.exit_at if settings.exit_at is not None else encoder.exit_at
        self.metrics = Metrics()
        self.busy = 0
        self.bodies = Quota(self.limits.open_bodies, "The server holds as many bytes of requests as it may")
        self.pixels = Quota(self.limits.open_pixels, "The server has as many pixels waiting as it may")
        self._reading = asyncio.Semaphore(1)  # a request's text is held three times while it is read
        timeout = httpx.Timeout(self.limits.engine, connect=5.0, pool=self.limits.engine)
        connections = httpx.Limits(max_connections=None, max_keepalive_connections=self.limits.requests)
        # Neither client follows a redirect or reads proxies from the environment.
        self.engine = httpx.AsyncClient(base_url=settings.engine, timeout=timeout, limits=connections, trust_env=False)
        self.fetch = httpx.AsyncClient(timeout=10.0, trust_env=False) if settings.image_urls else None
        self.pipeline = Pipeline(
            encoder,
            self.limits,
            self.metrics,
            fetch=self.fetch,
            guide_tokens=settings.guide_tokens,
            batch=settings.batch,
        )

    async def close(self) -> None:
        """Finish the stages and the connections."""
        await asyncio.to_thread(self.pipeline.close)
        await self.engine.aclose()
        if self.fetch is not None:
            await self.fetch.aclose()

    # -- a request ---------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        try:
            return await self._answer(request)
        except Refused as refused:
            return self._failed(refused)

    def _failed(self, refused: Refused) -> JSONResponse:
        if refused.status >= 500:
            _log.warning("%s: %s", refused.status, refused, exc_info=refused.__cause__)
        return JSONResponse(error_body(refused), refused.status, _RETRY if refused.status == 503 else None)

    async def _answer(self, request: Request) -> Response:
        with self.bodies.claim() as held:
            chat = await self._chat(request, held)
            if chat.keep is not None and self.encoder.rows_of_an_image is not None:
                raise Refused(
                    "vlmprune: keep cannot be chosen here, since the engine takes as many rows of every image."
                )
            headers: dict[str, str] = {}
            if chat.embedded:
                content = await asyncio.to_thread(self._with_embedded, chat)
            elif not chat.images:
                content = await asyncio.to_thread(_written, chat.body)
            else:
                with self.pixels.claim() as pixels:
                    ready = await until_disconnect(request, self.pipeline.prepare(chat, held, pixels))
                if isinstance(ready, Exit):
                    self.metrics.exits.inc()
                    return exit_response(chat.body, ready)
                self.metrics.tokens_in.inc(ready.visual_tokens)
                self.metrics.tokens_kept.inc(ready.kept_tokens)
                headers["x-vlmprune-visual-tokens"] = str(ready.visual_tokens)
                headers["x-vlmprune-kept-tokens"] = str(ready.kept_tokens)
                content = await asyncio.to_thread(_with_images, chat, ready)
                del ready
            stream = chat.stream
            del chat  # while the engine answers, only what it was sent is kept
            held.keep(len(content))
            return await self._forward(request, content, stream, headers)

    def _with_embedded(self, chat: Chat) -> bytes:
        """The request with images that a client encoded, checked and written again."""
        encoder = self.encoder
        try:
            parts = checked_parts(
                [content for _, content in chat.embedded], encoder.bounds, encoder.positions, encoder.rows_of_an_image
            )
        except BadEmbeddings as error:
            raise Refused(str(error)) from None
        return _written(chat.with_parts(parts))

    async def _chat(self, request: Request, held: Claim) -> Chat:
        """The request, read."""
        content = await self._body(request, held)
        async with self._reading:
            return await asyncio.to_thread(
                read_chat, content, self.limits, self.exit_at, embeddings=self.settings.embeddings
            )

    async def _body(self, request: Request, held: Claim) -> bytearray:
        too_large = Refused(f"The request has more than {self.limits.body:,} bytes; send smaller images.", 413)
        if _length(request) > self.limits.body:
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

    def _headers(self, request: Request) -> dict[bytes, bytes]:
        key = f"Bearer {self.settings.key}" if self.settings.key else request.headers.get("authorization")
        # In bytes, as it came: httpx would write a text in ASCII.
        return {b"Content-Type": b"application/json"} | ({b"Authorization": key.encode("latin-1")} if key else {})

    async def _forward(self, request: Request, content: bytes, stream: bool, headers: dict[str, str]) -> Response:
        outgoing = self.engine.build_request(
            "POST", "/v1/chat/completions", content=content, headers=self._headers(request)
        )
        answer = await until_disconnect(request, self._sent(outgoing))
        if stream and answer.status_code == 200:
            return StreamingResponse(self._relayed(answer), 200, headers, SSE)
        try:
            said = await until_disconnect(request, _read(answer))
        finally:
            await answer.aclose()
        if answer.status_code >= 500:
            raise Refused(f"The engine answers with status {answer.status_code}; see its log.", 502)
        return Response(said, answer.status_code, headers, answer.headers.get("content-type", "application/json"))

    async def _sent(self, outgoing: httpx.Request) -> httpx.Response:
        try:
            return await self.engine.send(outgoing, stream=True)
        except httpx.HTTPError as error:
            raise engine_failure(error, self.limits.engine) from error

    async def _relayed(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """The engine's stream; where it breaks off, an error takes the place of what was to come."""
        try:
            ended = False
            async for line in answer.aiter_lines():
                ended = ended or line.strip() == "data: [DONE]"
                yield f"{line}\n".encode()
            if not ended:
                raise httpx.ReadError("the stream ended without [DONE]")
        except httpx.HTTPError as error:
            self.metrics.broken_streams.labels("engine").inc()
            refused = engine_failure(error, self.limits.engine)
            _log.warning("stream: %s", refused)
            yield f"\ndata: {json.dumps(error_body(refused))}\n\n".encode()
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.broken_streams.labels("client").inc()
            raise
        finally:
            await answer.aclose()

    async def health(self) -> Response:
        """GET /health: this server and the engine behind it."""
        try:
            engine = (await self.engine.get("/health", timeout=2.0)).status_code == 200
        except httpx.HTTPError:
            engine = False
        fine = engine and self.pipeline.alive
        state = {"proxy": self.pipeline.alive, "engine": engine, "requests": self.busy}
        return JSONResponse(state, 200 if fine else 503)

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the engine's."""
        try:
            answer = await self.engine.get("/v1/models", headers=self._headers(request))
        except httpx.HTTPError as error:
            return self._failed(engine_failure(error, self.limits.engine))
        return Response(answer.content, answer.status_code, None, answer.headers.get("content-type"))


class ConcurrencyLimit:
    """ASGI middleware that counts the chat requests in the house, from their first byte to the last of their answer,
    and sends away those that are too many."""

    def __init__(self, app: Any, proxy: Proxy) -> None:
        self.app, self.proxy = app, proxy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/chat/completions":
            await self.app(scope, receive, send)
            return
        proxy = self.proxy

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                proxy.metrics.requests.labels(message["status"]).inc()
            await send(message)

        if proxy.busy >= proxy.limits.requests:
            full = Refused(f"The server has {proxy.busy} requests already; come back in a second.", 503)
            await JSONResponse(error_body(full), 503, _RETRY)(scope, receive, counted)
            return
        proxy.busy += 1
        proxy.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, counted)
        finally:
            proxy.busy -= 1
            proxy.metrics.in_flight.dec()


def _written(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError:  # a number such as 1e999 in a schema
        raise Refused("The request holds a number that is not finite; leave it out.") from None


def _with_images(chat: Chat, ready: Encoded) -> bytes:
    return _written(chat.with_parts(ready.parts()))


def _length(request: Request) -> int:
    """What a request says about its length; nothing is believed but that it is too long."""
    said = request.headers.get("content-length") or "0"
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 20 else 0


async def _read(answer: httpx.Response) -> bytes:
    try:
        return await answer.aread()
    except httpx.HTTPError as error:
        raise engine_failure(error, 0.0) from error


async def until_disconnect(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """The result of `work`, which ends with the client's connection.

    Raises:
        Refused: the client has hung up.
    """

    async def gone() -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refused("The client has hung up.", 499)
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


def create_app(encoder: Encoder, settings: ProxySettings) -> FastAPI:
    """The proxy as an application: `/v1/chat/completions`, `/v1/models`, `/health`, `/metrics`."""
    proxy = Proxy(encoder, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await proxy.close()

    app = FastAPI(title="vlmprune", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.proxy = proxy
    app.add_middleware(ConcurrencyLimit, proxy=proxy)

    async def metrics() -> Response:
        return Response(proxy.metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_api_route("/v1/chat/completions", proxy.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", proxy.models, methods=["GET"], response_model=None)
    app.add_api_route("/health", proxy.health, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", metrics, methods=["GET"], response_model=None)
    return app


def serve(app: FastAPI, host: str, port: int) -> None:
    """Run until headers to stop; what is in the house is answered first, for as long as `Limits.drain`."""
    import uvicorn

    limits: Limits = app.state.proxy.limits
    uvicorn.run(
        app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=int(limits.drain), access_log=False
    )
