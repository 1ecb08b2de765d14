"""The guide answers alone only where its greedy answer is what was asked for, of a model that the engine has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.support import KEEP, QUESTIONS, Handler, chat, proxy, served
from tests.support.engines import picture
from tests.support.grid import only_full
from vlmprune.serving.chat import is_greedy
from vlmprune.serving.encoder import Encoder

CHAT = "/v1/chat/completions"


class Engine(Handler):
    """Knows a model and an adapter of it, and asks for a key."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = [{"id": "tiny", "parent": None}, {"id": "adapter", "parent": "tiny"}]
        allowed = self.headers["authorization"] == "Bearer good"
        self.reply(json.dumps({"data": models} if allowed else {"error": "no"}).encode(), 200 if allowed else 401)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(b'{"choices": []}')


@pytest.fixture(scope="module")
def client(pair: Any) -> Iterator[httpx.Client]:
    """A guide that is always sure."""
    large, small, processor = pair
    encoder = Encoder(large, "sgl", guide=small, keep=KEEP, processor=processor)
    with served(Engine) as address, proxy(encoder, address, exit_at=0.0) as (client, _):
        client.headers["authorization"] = "Bearer good"
        yield client


def exits(client: httpx.Client, headers: Any = None, **more: Any) -> bool:
    body = {name: value for name, value in chat(QUESTIONS[0], picture(0), **more).items() if value is not ...}
    return "x-vlmprune-exited" in client.post(CHAT, json=body, headers=headers).headers


REQUESTS: list[tuple[dict[str, Any], bool]] = [
    ({}, True), ({"n": 1, "seed": 5, "top_p": 0.1, "logprobs": False, "user": "me", "presence_penalty": 0}, True),
    ({"temperature": 1.5}, False), ({"temperature": ...}, False), ({"temperature": None}, False), ({"n": 2}, False),
    ({"logprobs": True}, False), ({"top_logprobs": 2, "logprobs": True}, False), ({"stop": "a"}, False),
    ({"prompt_logprobs": 1}, False), ({"logit_bias": {"5": 100}}, False), ({"min_tokens": 3}, False),
    ({"presence_penalty": 0.5}, False), ({"repetition_penalty": 1.2}, False), ({"bad_words": ["red"]}, False),
    ({"ignore_eos": True}, False), ({"structured_outputs": {"choice": ["a"]}}, False), ({"echo": True}, False),
    ({"response_format": {"type": "json_object"}}, False), ({"continue_final_message": True}, False),
    ({"model": "other"}, False), ({"model": "adapter"}, False), ({"model": ...}, True), ({"model": None}, True),
    ({"headers": {"authorization": "Bearer bad"}}, False), ({"headers": {"authorization": ""}}, False),
]  # fmt: skip


@only_full
@pytest.mark.parametrize(("more", "exited"), REQUESTS)
def test_who_may_exit(client: httpx.Client, more: dict[str, Any], exited: bool) -> None:
    assert exits(client, **more) == exited


@only_full
def test_an_exit_names_the_engines_model_and_ends_where_it_was_told(client: httpx.Client) -> None:
    whole = client.post(CHAT, json=chat(QUESTIONS[0], picture(0))).json()
    body = chat(QUESTIONS[0], picture(0), max_tokens=1)
    del body["model"]
    cut = client.post(CHAT, json=body).json()
    assert (whole["model"], cut["model"]) == ("tiny", "tiny")
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 1)
    assert whole["usage"]["completion_tokens"] > 1
    assert whole["choices"][0]["message"]["content"].startswith(cut["choices"][0]["message"]["content"])


def test_the_fields_of_a_plain_request_are_known() -> None:
    for more, exited in REQUESTS:
        if not more.keys() & {"model", "headers"}:
            assert is_greedy({k: v for k, v in chat("x", **more).items() if v not in (..., None)}) == exited, more
    assert not is_greedy({**chat("x"), "a field of tomorrow": 1})
