"""What of a chat request goes on to the engine, and that nothing in it makes anybody fetch an address."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from tests.serving.mutants import counting_site, requests
from tests.serving.support import Handler, chat, data_url, image_part, message_of, proxy, served
from tests.support.engines import picture
from vlmprune.serving.chat import Limits, read_chat
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.fields import REQUEST, Refused

GOOD = data_url(picture(0))


def read(body: Any, **options: Any) -> Any:
    return read_chat(body if isinstance(body, bytes) else json.dumps(body).encode(), Limits(), **options)


def refused(body: Any) -> str:
    with pytest.raises(Refused) as caught:
        read(body)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of(*parts: Any, **message: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(parts), **message}]}


# --- what goes on --------------------------------------------------------------------------------------------------

ORDINARY = {
    "temperature": 0.5, "top_p": 1, "n": 2, "stop": ["a", "b"], "seed": 3, "logprobs": True, "top_logprobs": 2,
    "stream": True, "stream_options": {"include_usage": True}, "max_completion_tokens": 5, "presence_penalty": -1.0,
    "frequency_penalty": 0.5, "logit_bias": {"5": -100}, "user": "me", "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": {
        "name": "f", "description": "d", "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}},
                       "$schema": "http://json-schema.org/draft-07/schema#"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
    "metadata": {"a": "b"}, "reasoning_effort": "low", "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
    "ignore_eos": True, "min_tokens": 1, "stop_token_ids": [1], "structured_outputs": {"choice": ["a", "b"]},
    "modalities": ["text"], "store": False, "service_tier": "auto",
}  # fmt: skip


def test_what_ordinary_clients_send_goes_on_as_it_is() -> None:
    talk = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}]},
        {"role": "user", "content": [{"type": "text", "text": "t"}], "name": "me"},
        {"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "r", "tool_call_id": "1"},
        {"role": "assistant", "content": "a", "reasoning": "r"},
    ]  # fmt: skip
    body = {"model": "tiny", "messages": talk, **ORDINARY}
    assert read(body).body == body


def test_what_an_answer_brought_may_come_back() -> None:
    """Clients append the message of an answer with all its empty fields."""
    message = {
        "role": "assistant", "content": "red", "refusal": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": [], "reasoning_content": None,
    }  # fmt: skip
    found = read({"model": "tiny", "messages": [message], "chat_template_kwargs": None, "documents": []})
    assert found.body == {"model": "tiny", "messages": [{"role": "assistant", "content": "red"}]}


def test_an_image_part_leaves_nothing_behind() -> None:
    part = {"type": "image_url", "image_url": {"url": GOOD, "detail": "low"}, "uuid": None}
    found = read(of(part, {"type": "text", "text": "x"}))
    assert found.body["messages"][0]["content"] == [None, {"type": "text", "text": "x"}]
    assert found.with_parts([{"type": "image_embeds"}])["messages"][0]["content"][0] == {"type": "image_embeds"}
    assert found.body["messages"][0]["content"][0] is None


# --- what does not -------------------------------------------------------------------------------------------------

URL = "http://127.0.0.1:9/x.png"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "x", "uuid": "u", "image_url": {"url": URL}},
        {"type": "text", "text": "x", "uuid": "u"},
        {"type": "text", "text": "x", "image_url": URL},
        {"type": "text", "text": {"url": URL}},
        {"type": "text", "text": None},
        {"type": "image_url", "image_url": {"url": GOOD}, "uuid": "u"},
        {"type": "image_url", "image_url": {"url": GOOD, "fallback": URL}},
        {"type": "image_url", "image_url": {"url": {"url": URL}}},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": URL},
        {"type": "image_url"},
        {"type": "video_url", "video_url": {"url": URL}},
        {"type": "input_audio", "input_audio": {"data": URL, "format": "wav"}},
        {"type": "file", "file": {"file_id": "1"}},
        {"type": "input_image", "image_url": URL},
        {"type": "image_embeds", "image_embeds": None, "uuid": "of somebody else"},
        {"type": ["text"], "text": "x"},
        {"image_url": {"url": URL}},
        {},
        "text",
        None,
        5,
        [],
    ],
)
def test_parts(part: Any) -> None:
    assert refused(of(part))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": {"type": "text", "text": "x"}},
        {"role": "user", "content": 5},
        {"role": "user2", "content": "x"},
        {"role": None, "content": "x"},
        {"content": "x"},
        {"role": "user", "content": "x", "image_url": URL},
        {"role": "user", "content": "x", "name": {"url": URL}},
        {"role": "user", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "developer", "content": "x", "tools": [{"url": URL}]},
        {"role": "assistant", "content": "x", "audio": {"id": "1"}},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f"}, "url": URL}]},
        {"role": "tool", "content": [{"type": "tool_reference", "name": "x"}]},
        "x",
        None,
    ],
)
def test_messages(message: Any) -> None:
    assert refused({"model": "tiny", "messages": [message]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mm_processor_kwargs", {"a": 1}), ("media_io_kwargs", {"image": {"a": 1}}), ("chat_template", "{{ x }}"),
        ("chat_template_kwargs", {"a": 1}), ("documents", [{"text": URL}]), ("vllm_xargs", {"a": URL}),
        ("kv_transfer_params", {"remote_host": "127.0.0.1"}), ("ec_transfer_params", {"a": 1}),
        ("logits_processors", ["os.system"]), ("functions", [{"name": "f"}]), ("extra", 1), ("request_id", "1"),
        ("stop", {"url": URL}), ("temperature", "0"), ("temperature", True), ("n", 1.5), ("n", 10**12),
        ("top_logprobs", 10**9), ("stop", ["a"] * 1000), ("structured_outputs", {"json": '{"$ref": "' + URL + '"}'}),
        ("seed", 2**63), ("model", 5),
        ("stream", 1), ("stream_options", {"url": URL}), ("logit_bias", {"1": URL}), ("tool_choice", {"url": URL}),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"a": [{"$ref": URL}]}}}]),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"$ref": URL}}}),
        ("structured_outputs", {"json": {"$dynamicRef": URL}}), ("structured_outputs", {"structural_tag": "x"}),
        ("modalities", ["audio"]), ("metadata", {"a": {"url": URL}}),
    ],
)  # fmt: skip
def test_fields_of_the_request(name: str, value: Any) -> None:
    assert f"{name}" in refused({**chat("x"), name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"tools": [{"function": {f"k{number}": 1 for number in range(999)}}]},
        {"logit_bias": {f"{number}": "a" for number in range(999)}},
        {"stop_token_ids": ["a"] * 200},
        {f"k{number}": 1 for number in range(999)},
    ],
)
def test_the_first_fault_ends_the_reading(wrong: dict[str, Any]) -> None:
    """An error for each of half a million values would fill the memory and hold everybody up for seconds."""
    with pytest.raises(ValidationError) as caught:
        REQUEST.validate_python({**chat("x"), **wrong})
    assert caught.value.error_count() == 1


def test_json_that_two_readers_may_take_differently() -> None:
    """The engine gets what was read, written again: the last of two values, and U+FFFD for half a surrogate pair."""
    plain = json.dumps(chat("x"))
    twice = read(plain.replace('"text": "x"', '"text": "x", "text": "y"').encode())
    assert twice.body["messages"][0]["content"] == [{"type": "text", "text": "y"}]
    assert read({**chat("a\ud800b"), "user": "\udfff"}).texts == ["a\N{REPLACEMENT CHARACTER}b"]
    assert "temperature=nan" in refused(plain.replace('"temperature": 0', '"temperature": NaN').encode())
    assert "temperature=inf" in refused(plain.replace('"temperature": 0', '"temperature": 1e999').encode())
    assert "nested" in refused({**chat("x"), "metadata": json.loads("[" * 500 + "]" * 500)})
    assert "no JSON" in refused(b"[" * 100_000 + b"]" * 100_000)
    assert "no JSON" in refused(plain.replace('"temperature": 0', '"seed": ' + "9" * 5000).encode())


def test_embeddings_only_where_they_are_allowed() -> None:
    part = {"type": "image_embeds", "image_embeds": "AAAA"}
    with pytest.raises(Refused, match="Image embeddings are not taken") as caught:
        read(of(part))
    assert caught.value.status == 403
    found = read(of(part), embeddings=True)
    assert [image.embeddings for image in found.images] == ["AAAA"]
    with pytest.raises(Refused, match="either of them"):
        read(of(part, image_part(GOOD)), embeddings=True)


# --- nobody is visited ---------------------------------------------------------------------------------------------


def addresses(value: Any) -> Iterator[str]:
    """Every text in a JSON value that looks like an address, names of fields among them."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from addresses(name)
            yield from addresses(one)
    elif isinstance(value, list):
        for one in value:
            yield from addresses(one)
    elif isinstance(value, str) and value.lower().startswith("http"):
        yield value


@pytest.fixture
def curious() -> Iterator[tuple[str, list[Any]]]:
    """An engine that fetches every address it is sent, wherever it stands, and what it was sent."""
    got: list[Any] = []

    class Engine(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            got.append(body)
            for address in addresses(body):
                try:
                    urllib.request.urlopen(address.lower(), timeout=5).close()
                except OSError:
                    continue
            said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "seen"}}]}
            self.reply(json.dumps(said).encode(), **{"Content-Type": "application/json"})

    with served(Engine) as address:
        yield address, got


@pytest.mark.parametrize("embeddings", [False, True])
def test_three_hundred_mutated_requests_visit_nobody(curious: Any, uniform: Encoder, embeddings: bool) -> None:
    engine, got = curious
    with counting_site() as (site, hits), proxy(uniform, engine, embeddings=embeddings) as (client, _):
        client.post("/v1/chat/completions", json=chat("x", metadata={"a": site}))
        assert hits == ["/"]  # the engine is as curious as it is meant to be
        hits.clear()
        for number, body in enumerate(requests(site, 300, seed=int(embeddings))):
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code in (200, 400, 403), (number, answer.text, body)
            if answer.status_code != 200:
                assert "\n" not in message_of(answer)
                assert message_of(answer).endswith(".")
    assert hits == []
    assert len(got) < 100
