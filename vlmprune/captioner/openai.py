"""Aggregation by a server that speaks the OpenAI chat protocol: one POST, no client."""

import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..errors import VlmpruneError
from ..methods.declared import number
from .aggregate import AggregatorError
from .llm import SCHEMAS, Messages, StructuredAggregator, Unusable

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)  # may be different a moment later
LONGEST_WAIT = 60.0  # seconds, also where the server asks for more


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
        VlmpruneError: the URL is not one of http or https, or a number is out of range.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False, compare=False)
    timeout: float = field(default=60.0, compare=False, metadata=number(float, 0.001))
    retries: int = field(default=4, compare=False, metadata=number(int, 0))
    backoff: float = field(default=1.0, compare=False, metadata=number(float, 0))
    structured: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise VlmpruneError(f"url must be a web address such as http://127.0.0.1:8000/v1, got {self.url!r}.")

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
        reply = self._post(body)
        try:
            choice = json.loads(reply)["choices"][0]
            content, ending = choice["message"].get("content"), choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise AggregatorError(
                f"{self.url} must answer with a chat completion, got {reply[:120]!r}; check that it is an "
                "OpenAI-compatible server."
            ) from None
        if ending == "length":
            raise Unusable("It was cut off; be shorter.")
        if not isinstance(content, str):
            raise Unusable("It has no content.")
        return content

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        address, problem = self.url.rstrip("/") + "/chat/completions", ""
        for attempt in range(self.retries + 1):
            # A little chance, so that many clients do not come back at the same moment.
            wait = self.backoff * 2**attempt * random.uniform(1.0, 1.25)
            try:
                # No redirect is followed: it would send the key to somebody else.
                answer = httpx.post(address, json=body, headers=headers, timeout=self.timeout)
                if answer.is_success:
                    return answer.content
                problem = f"status {answer.status_code}: {' '.join(answer.text.split())[:160]}"
                if answer.status_code not in BUSY:
                    raise AggregatorError(
                        f"{self.url} refused the request ({problem}); check the address, the key and the model's name."
                    )
                with suppress(ValueError):  # a date is left to the back-off
                    wait = max(0.0, float(answer.headers.get("Retry-After", wait)))
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # time-outs, refused and lost connections
                problem = str(error) or type(error).__name__
            if attempt < self.retries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise AggregatorError(
            f"{self.url} gave no answer in {self.retries + 1} tries (the last: {problem}); check that it runs, or "
            "raise timeout or retries."
        )
