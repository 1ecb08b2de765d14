"""Aggregation by a server that speaks the OpenAI chat protocol. Only the standard library: one POST, no client."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from ..errors import VlmpruneError
from .aggregate import AggregatorError
from .llm import SCHEMAS, Messages, StructuredAggregator, Unusable

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)  # may be different a moment later
LONGEST_WAIT = 60.0  # seconds, also where the server asks for more


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to somebody else, and turn the POST into a GET."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass
class EndpointAggregator(StructuredAggregator):
    """An OpenAI-compatible endpoint.

    Args:
        url: the base, for instance "http://127.0.0.1:8000/v1"; "/chat/completions" is added.
        model: the model's name there. key: sent as a bearer token, kept out of every message and record.
        timeout: seconds the server may stay silent. retries: more tries after a time-out, a lost connection or a busy
            answer (408, 409, 425, 429, 5xx), waiting `backoff`, then twice that and so on, or what `Retry-After` says.
        structured: send the JSON schema as `response_format`; off for servers that refuse it (the schema stands in the
            prompt as well).
    Raises:
        VlmpruneError: the URL is none, or a number is out of range.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 1.0
    structured: bool = True
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise VlmpruneError(f"url={self.url!r} is no web address; give one like http://127.0.0.1:8000/v1.")
        if self.timeout <= 0 or self.retries < 0 or self.backoff < 0:
            raise VlmpruneError(
                f"timeout={self.timeout!r}, retries={self.retries!r}, backoff={self.backoff!r}: the first must be "
                "positive, the others not negative."
            )
        self._opener = urllib.request.build_opener(_NoRedirects)

    def identity(self) -> dict[str, Any]:
        """Which model where, and how it is asked; never the key."""
        return {**super().identity(), "url": self.url, "model": self.model, "structured": self.structured}

    def complete(self, messages: Messages, *, task: str, temperature: float, seed: int) -> str:
        """One reply.

        Raises:
            AggregatorError: the server refuses the request, or stays busy or silent through all retries.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "seed": seed % (1 << 31),  # some servers read it as a 32-bit number
        }
        if self.structured:
            schema = {"name": task, "schema": SCHEMAS[task], "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        reply = self._post(json.dumps(body).encode())
        try:
            choice = json.loads(reply)["choices"][0]
            content, ending = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise AggregatorError(
                f"{self.url} answered {reply[:120]!r}, which is no chat completion; check that the address is that of "
                "an OpenAI-compatible server."
            ) from None
        if ending == "length":
            raise Unusable("It was cut off; be shorter.")
        if not isinstance(content, str):
            raise Unusable("It has no content.")
        return content

    def _post(self, body: bytes) -> bytes:
        address = self.url.rstrip("/") + "/chat/completions"
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        problem = ""
        for attempt in range(self.retries + 1):
            wait: float | None = None
            try:
                request = urllib.request.Request(address, data=body, headers=headers, method="POST")
                with self._opener.open(request, timeout=self.timeout) as answer:
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                said = error.read(300).decode(errors="replace").strip()
                problem = f"status {error.code}: {' '.join(said.split())[:160]}"
                if error.code not in BUSY:
                    raise AggregatorError(
                        f"{self.url} refused the request ({problem}); check the address, the key and the model's name."
                    ) from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException) as error:  # time-outs, refused and lost connections
                problem = str(getattr(error, "reason", None) or error) or type(error).__name__
            if attempt < self.retries:
                # A little chance, so that many clients do not come back at the same moment.
                pause = self.backoff * 2**attempt * random.uniform(1.0, 1.25) if wait is None else wait
                self.sleep(min(pause, LONGEST_WAIT))
        raise AggregatorError(
            f"{self.url} gave no answer in {self.retries + 1} tries (the last: {problem}); check that it runs, or "
            "raise timeout or retries."
        )


def _seconds(header: str | None) -> float | None:
    """`Retry-After` where it is a number of seconds; a date is left to the back-off."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
