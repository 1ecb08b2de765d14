"""Around all routes: an id for every request, a line in the log, and an answer also to what nobody expected."""

import json
import logging
import re
import time
import uuid
from typing import Any

from .answers import refusal
from .fields import Refused
from .metrics import Metrics

ACCESS = logging.getLogger("vlmprune.access")
_log = logging.getLogger(__name__)
_ID = re.compile(r"[!-~]{1,128}")
# Of an answer's headers, what the log says of its images.
_LOGGED = {
    "x-vlmprune-visual-tokens": "visual", "x-vlmprune-kept-tokens": "kept", "x-vlmprune-exited": "exited"
}  # fmt: skip


class AccessLog:
    """ASGI middleware. A client's `x-request-id` is taken where it is printable and has at most 128 characters; the
    engine and the answer get it, or a new one.

    Args:
        form: "off", "text" or "json"; lines go to the logger "vlmprune.access" when the answer has ended.
    """

    def __init__(self, app: Any, metrics: Metrics, form: str) -> None:
        self.app, self.metrics, self.form = app, metrics, form

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, about = time.perf_counter(), 0, {}
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def counted(message: Any) -> None:
            nonlocal status, about
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", request_id.encode())]}
                said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
                about = {short: int(said[name]) for name, short in _LOGGED.items() if name in said}
                if scope["method"] == "POST":
                    self.metrics.requests.labels(status).inc()
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception as error:
            _log.exception("request %s", request_id)
            if not status:
                failed = Refused(f"The server failed on this request ({type(error).__name__}); see its log.", 500)
                await refusal(failed)(scope, receive, counted)
        finally:
            if self.form != "off":
                self._write(scope, request_id, status, time.perf_counter() - start, about)

    def _write(self, scope: Any, request_id: str, status: int, seconds: float, about: dict[str, int]) -> None:
        client = (scope.get("client") or ("-",))[0]
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "id": request_id, "client": client,
            "method": scope["method"], "path": scope["path"], "status": status, "ms": round(seconds * 1e3, 1), **about,
        }  # fmt: skip
        if self.form == "json":
            ACCESS.info("%s", json.dumps(line))
        else:  # quoted, so that no path makes lines of its own
            ACCESS.info("%s", " ".join(f"{name}={_quoted(value)}" for name, value in line.items()))


def _quoted(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[\w.:/+-]+", text, re.ASCII) else json.dumps(text)
