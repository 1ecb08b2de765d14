"""What the proxy itself answers, in the form of the engine's: errors, and answers of a confident guide."""

import json
import time
import uuid
from typing import Any

import httpx
from fastapi.responses import JSONResponse, Response

from ..errors import VlmpruneError
from .encoded import Ranking
from .fields import Refused

SSE = "text/event-stream"


def engine_failure(error: httpx.HTTPError) -> Refused:
    """What a client is told when the engine does not answer."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Refused("The engine cannot be reached; try again later.", 503)
    if isinstance(error, httpx.TimeoutException):
        seconds = error.request.extensions["timeout"]["read"]
        return Refused(f"The engine was silent for {seconds:g} seconds; try again later.", 504)
    return Refused(f"The engine broke off its answer ({type(error).__name__}); try again.", 502)


def refusal(error: VlmpruneError) -> JSONResponse:
    """An error as OpenAI's clients read it; what is not `Refused` is the request's fault."""
    status = error.status if isinstance(error, Refused) else 400
    kind = "invalid_request_error" if status < 500 else "server_error"
    said = str(error).rstrip(".").encode("utf-8", "replace").decode()
    body = {"error": {"message": f"{said}.", "type": kind, "code": status}}
    return JSONResponse(body, status, {"Retry-After": "1"} if status == 503 else None)


def exit_response(body: dict[str, Any], ranking: Ranking) -> Response:
    """The guide's answer in the form of the engine's."""
    reason = "stop" if ranking.finished else "length"
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.get("model")}
    usage = {
        "prompt_tokens": ranking.prompt_tokens,
        "completion_tokens": ranking.tokens,
        "total_tokens": ranking.prompt_tokens + ranking.tokens,
    }
    headers = {"x-vlmprune-exited": "1", "x-vlmprune-sure": f"{ranking.sure:.4f}"}
    if body.get("stream") is not True:
        message = {"role": "assistant", "content": ranking.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage}, 200, headers)
    deltas = [({"role": "assistant", "content": ""}, None), ({"content": ranking.text}, None), ({}, reason)]
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": ending}]}
        for delta, ending in deltas
    ]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({"choices": [], "usage": usage})
    head["object"] = "chat.completion.chunk"
    events = [*(json.dumps({**head, **chunk}) for chunk in chunks), "[DONE]"]
    return Response("".join(f"data: {event}\n\n" for event in events), 200, headers, SSE)
