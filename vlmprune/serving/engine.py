"""The engine behind a proxy: what is sent there, and its answers as they came."""

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from .answers import SSE, engine_failure, refusal
from .chat import Limits
from .metrics import Metrics
from .text_routes import WITH_DONE

_log = logging.getLogger(__name__)

# Of a client's headers, those that the engine gets. `authorization` may be the proxy's own.
_SENT = ("authorization", "x-request-id", "traceparent", "tracestate", "baggage")
# Of the engine's, those that are about the connection to it or are written again.
_NOT_RELAYED = {
    "connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade", "date", "server",
    "content-length", "content-encoding", "set-cookie",
}  # fmt: skip
# The end of a stream, on a line of its own: within JSON there are no line ends.
_DONE = re.compile(rb"[\r\n]data: ?\[DONE\]")
_FRESH = 60.0  # seconds for which the engine's models are believed
_MOST_KEYS = 1024  # of clients, whose models are remembered


class EngineClient:
    """A client of the engine at an address; `key` is sent in place of its clients' own."""

    def __init__(self, address: str, key: str | None, limits: Limits, metrics: Metrics) -> None:
        self.limits, self.metrics = limits, metrics
        self._key = f"Bearer {key}".encode("latin-1") if key else None
        self._streaming = httpx.Timeout(limits.engine, connect=5.0, pool=limits.engine)
        self._whole = httpx.Timeout(limits.answer, connect=5.0, pool=limits.engine)
        connections = httpx.Limits(max_connections=None, max_keepalive_connections=limits.requests)
        # It follows no redirect and reads no proxies from the environment.
        self.client = httpx.AsyncClient(
            base_url=address,
            timeout=self._streaming,
            limits=connections,
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )
        self._models: dict[bytes, tuple[float, dict[str, bool]]] = {}

    async def ready(self) -> bool:
        """Whether it says that it is well."""
        try:
            return (await self.client.get("/health", timeout=2.0)).status_code == 200
        except httpx.HTTPError:
            return False

    async def metrics_text(self) -> bytes:
        """Its own counters, none where it cannot be reached."""
        try:
            found = await self.client.get("/metrics", timeout=2.0)
        except httpx.HTTPError:
            return b""
        return found.content if found.status_code == 200 else b""

    async def model(self, request: Request, name: str | None) -> str | None:
        """The model that a request's client may use under this name, the first one for no name; None where there is
        none, or it is an adapter, for which no guide stands. Where the engine cannot be reached, what it said last."""
        headers = self._headers(request)
        key = hashlib.sha256(headers.get(b"authorization", b"")).digest()
        when, models = self._models.get(key, (-_FRESH, {}))
        if time.monotonic() - when >= _FRESH:
            try:
                found = await self.client.get("/v1/models", headers=list(headers.items()), timeout=5.0)
                listed = found.json()["data"] if found.status_code == 200 else []
                models = {str(one["id"]): one.get("parent") is None for one in listed}
                if len(self._models) >= _MOST_KEYS:
                    self._models.clear()
                self._models[key] = time.monotonic(), models
            except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
                pass
        name = next(iter(models), None) if name is None else name
        return name if name is not None and models.get(name) else None

    def _headers(self, request: Request) -> dict[bytes, bytes]:
        # In bytes, as they came: httpx would write a text in ASCII.
        given = {name: value for name, value in request.headers.raw if name.decode("latin-1").lower() in _SENT}
        given |= {b"x-request-id": request.state.request_id.encode()}
        return given | ({b"authorization": self._key} if self._key else {})

    async def forward(
        self, request: Request, content: bytes = b"", headers: Mapping[str, str] | None = None, *, stream: bool = False
    ) -> Response:
        """Its answer to a request of these bytes.

        Args:
            headers: added to the answer's. stream: whether pieces were asked for; an answer that comes whole is silent
                until its end.
        """
        sent = self._headers(request) | ({b"content-type": b"application/json"} if content else {})
        outgoing = self.client.build_request(
            request.method,
            request.url.path,
            params=request.url.query or None,
            content=content,
            headers=list(sent.items()),
            timeout=self._streaming if stream or request.method == "GET" else self._whole,
        )
        answer = await self.client.send(outgoing, stream=True)
        relayed = {name: value for name, value in answer.headers.items() if name not in _NOT_RELAYED}
        relayed |= dict(headers or {})
        if answer.headers.get("content-type", "").startswith(SSE):
            with_done = answer.status_code == 200 and request.url.path in WITH_DONE
            return StreamingResponse(self._relayed(answer, with_done), answer.status_code, relayed)
        try:
            said = await answer.aread()
        finally:
            await answer.aclose()
        if answer.status_code >= 500:
            _log.warning("the engine answers with status %s", answer.status_code)
        return Response(said, answer.status_code, relayed)

    async def _relayed(self, answer: httpx.Response, with_done: bool) -> AsyncIterator[bytes]:
        """Its stream, byte by byte; where it breaks off, an error takes the place of what was to come."""
        last, ended = b"\n", not with_done
        try:
            async for piece in answer.aiter_bytes():
                ended = ended or _DONE.search(last + piece) is not None
                last = (last + piece)[-16:]
                yield piece
            if not ended:
                raise httpx.ReadError("the stream ended without [DONE]")
        except httpx.HTTPError as error:
            self.metrics.broken_streams.labels("engine").inc()
            refused = engine_failure(error)
            _log.warning("stream: %s", refused)
            yield b"\n\ndata: " + bytes(refusal(refused).body) + b"\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.metrics.broken_streams.labels("client").inc()
            raise
        finally:
            await answer.aclose()


def written(body: Mapping[str, Any]) -> bytes:
    """A request as an engine reads it.

    Raises:
        ValueError: NaN or 1e999 in a schema.
    """
    return json.dumps(body, allow_nan=False).encode()
