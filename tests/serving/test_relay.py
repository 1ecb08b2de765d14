"""What passes between clients and the engine as it is: streams, errors, headers and the routes without images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx
import pytest

from tests.serving.support import Handler, chat, data_url, events, eventually, image_part, message_of, proxy, served
from tests.support.engines import picture
from tests.support.grid import only_full
from vlmprune.serving.chat import Limits
from vlmprune.serving.encoder import Encoder

CHAT = "/v1/chat/completions"
GOOD = data_url(picture(0))


class Mirror(Handler):
    """Answers with what it was sent, or as `answers` says for a path; `got` are method, path, headers and body."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[dict[str, tuple[int, bytes, dict[str, str]]]] = {}
    got: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.got.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, content, headers = self.answers.get(self.path.partition("?")[0], (200, body or b"{}", {}))
        self.reply(content, status, **{"Content-Type": "application/json", **headers})

    do_POST = do_DELETE = do_PUT = do_GET


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(Mirror) as address:
        yield address


@pytest.fixture
def mirror(address: str) -> tuple[str, type[Mirror]]:
    """An engine that has not been asked anything."""
    Mirror.answers.clear()
    Mirror.got.clear()
    return address, Mirror


@pytest.fixture(scope="module")
def client(address: str, uniform: Encoder) -> Iterator[httpx.Client]:
    with proxy(uniform, address) as (client, _):
        yield client


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_comes_byte_by_byte_whatever_its_pieces(uniform: Encoder) -> None:
    said = 'data: {"choices": [{"delta": {"content": "a\u2028b\u2029c\x85d\x0b\x0c\x1c é 🙂 data: [DONE]"}}]}'
    streams = [
        f"{said}{end}{end}: a comment{end}{end}event: x{end}{said}{end}{end}{done}{end}{end}".encode()
        for end in ("\n", "\r\n", "\r")
        for done in ("data: [DONE]", "data:[DONE]")
    ]
    broken = [f"{said}\n\n".encode(), f"{said}\n\n: data: [DONE]\n\n".encode(), said.encode()]

    class Pieces(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            stream, size = (streams + broken)[int(asked["user"])], asked["seed"]
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(stream), size):
                piece = stream[at : at + size]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

    with served(Pieces) as address, proxy(uniform, address) as (client, _):
        for number, stream in enumerate(streams + broken):
            for size in (1, 50):
                got = client.post(CHAT, json=chat("x", stream=True, user=str(number), seed=size))
                assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
                if number < len(streams):
                    assert got.content == stream, (number, size)
                else:
                    assert got.content.startswith(stream)
                    assert events(iter(got.text[len(stream.decode()) :].splitlines()))[-1]["error"]["code"] == 502


# --- errors and headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 422, 500, 503])
def test_errors_of_the_engine_are_its_own(client: httpx.Client, mirror: Any, status: int) -> None:
    body = b'{"object": "error",  "message": "own words \xc3\xa9"}'
    mirror[1].answers[CHAT] = status, body, {"Retry-After": "7", "WWW-Authenticate": "Bearer", "X-Own": "1"}
    for asked in (chat("x"), chat("x", picture(0)), chat("x", picture(0), stream=True)):
        got = client.post(CHAT, json=asked)
        assert (got.status_code, got.content) == (status, body)
        assert [got.headers[name] for name in ("retry-after", "www-authenticate", "x-own")] == ["7", "Bearer", "1"]


def test_ids_of_requests_pass_both_ways(client: httpx.Client, mirror: Any) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    given = {"x-request-id": "my-1", "traceparent": trace, "tracestate": "a=1", "authorization": "Bearer é".encode()}
    mirror[1].answers[CHAT] = 200, b"{}", {"X-Request-Id": "my-1", "Traceparent": trace}
    got = client.post(CHAT, json=chat("x"), headers={**given, "cookie": "c=1", "x-forwarded-for": "1.2.3.4"})
    sent = mirror[1].got[-1][2]
    assert {name: sent[name] for name in ("x-request-id", "traceparent", "tracestate")} == {
        "x-request-id": "my-1", "traceparent": trace, "tracestate": "a=1"
    }  # fmt: skip
    assert sent["authorization"].encode("latin-1") == given["authorization"]
    assert "cookie" not in sent
    assert got.headers.get_list("x-request-id") == ["my-1"]
    assert got.headers["traceparent"] == trace
    for bad in ("x" * 129, "a b", "\x7f"):  # one of its own instead
        got = client.post(CHAT, json=chat("x"), headers={"x-request-id": bad})
        assert got.headers["x-request-id"] == mirror[1].got[-1][2]["x-request-id"] != bad


@only_full
@pytest.mark.parametrize("form", ["text", "json"])
def test_the_access_log(uniform: Encoder, mirror: Any, form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vlmprune.access")
    with proxy(uniform, mirror[0], access_log=form) as (client, _):
        client.post(CHAT, json=chat("x", picture(0)), headers={"x-request-id": "r1"})
        client.get("/no%0asuch%0d%0aroute", headers={"x-request-id": "r2"})
    lines = [one.getMessage() for one in caplog.records if one.name == "vlmprune.access"]
    assert len(lines) == 2
    assert not any("\n" in line for line in lines)
    if form == "json":
        first, second = map(json.loads, lines)
        assert (first["id"], first["status"], first["visual"], first["kept"]) == ("r1", 200, 196, 39)
        assert (second["id"], second["status"], second["method"]) == ("r2", 404, "GET")
    else:
        assert "id=r1 " in lines[0]
        assert f"path={CHAT} status=200" in lines[0]
        assert "kept=39" in lines[0]


@only_full
def test_what_nobody_expected_is_json_too(uniform: Encoder, mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with proxy(uniform, mirror[0]) as (client, state):
        monkeypatch.setattr(state.engine.client, "build_request", lambda *args, **more: 1 / 0)
        got = client.post(CHAT, json=chat("x"))
    assert (got.status_code, "ZeroDivisionError" in message_of(got)) == (500, True)
    assert got.headers["x-request-id"]


# --- odd texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a <image> b", "<IMAGE>", "< image >", "<im<image>age>", "<image>" * 50, "half \ud800 pair"]
)
@pytest.mark.parametrize("role", ["system", "assistant"])
def test_texts_that_mark_images(client: httpx.Client, mirror: Any, text: str, role: str) -> None:
    """As many embeddings as images go on, and no mark beside them."""
    body = chat("x", picture(0))
    body["messages"].insert(0, {"role": "user", "content": [{"type": "text", "text": text}, image_part(GOOD)]})
    body["messages"].insert(1, {"role": role, "content": text})
    got = client.post(CHAT, content=json.dumps(body))
    assert got.status_code == 200, got.text
    sent = json.loads(mirror[1].got[-1][3])["messages"]
    assert [part["type"] for part in sent[0]["content"]] == ["text", "image_embeds"]
    assert "<image>" not in json.dumps([sent[0]["content"][0], sent[1]]).lower()
    assert "image" in sent[1]["content"].lower() or "pair" in sent[1]["content"]


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages": [{"role": "user", "content": "x"}], "metadata": ' + b'{"a":' * 500 + b"1" + b"}" * 501,
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "seed": 99999999999999999999}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
        b'{"messages": [{"role": "\\udfff", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": '
        b'{"name": "f", "parameters": {"maximum": Infinity}}}]}',
        b'\xff\xfe{"messages"', b"\x00", b'"\\ud800"',
    ],
)  # fmt: skip
def test_odd_json_is_a_clients_error_in_json(client: httpx.Client, mirror: Any, raw: bytes) -> None:
    for path, content in ((CHAT, raw), ("/v1/completions", raw.replace(b'"messages"', b'"prompt"'))):
        got = client.post(path, content=content)
        assert got.status_code == 400, got.text
        assert got.headers["content-type"] == "application/json"
        assert set(got.json()["error"]) >= {"message", "type", "code"}
    assert not mirror[1].got


def test_a_key_that_comes_twice_counts_once(client: httpx.Client, mirror: Any) -> None:
    raw = b'{"messages": [], "messages": [{"role": "user", "content": "x", "content": "y"}]}'
    assert client.post(CHAT, content=raw).status_code == 200
    assert json.loads(mirror[1].got[-1][3]) == {"messages": [{"role": "user", "content": "y"}]}


# --- other routes --------------------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "x"}]
TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"model": "m", "prompt": ["a", "b"], "max_tokens": 8192, "echo": True, "logprobs": 3}),
    ("/v1/completions", {"prompt": [[1, 2], [3]], "stop": "x", "temperature": 0.5, "suffix": "s"}),
    ("/v1/responses", {"model": "m", "input": "x", "instructions": "i", "max_output_tokens": 9}),
    ("/v1/responses", {"input": [
        {"role": "user", "content": [{"type": "input_text", "text": "t"}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "t"}, {"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "o"}],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}, "previous_response_id": "resp_1"}),
    ("/tokenize", {"model": "m", "prompt": "x", "add_special_tokens": False}),
    ("/tokenize", {"messages": TALK, "add_generation_prompt": True}),
    ("/detokenize", {"model": "m", "tokens": [1, 2]}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), TEXTS)
def test_routes_without_images_pass(client: httpx.Client, mirror: Any, path: str, body: dict[str, Any]) -> None:
    got = client.post(path, json=body)
    assert (got.status_code, got.json()) == (200, body)
    assert mirror[1].got[-1][:2] == ("POST", path)


def test_what_the_engine_says_of_itself(client: httpx.Client, mirror: Any) -> None:
    mirror[1].answers["/metrics"] = 200, b"vllm:x 1\n", {}
    for path in ("/version", "/v1/models", "/load", "/ping", "/v1/responses/resp_1-a?starting_after=2"):
        assert client.get(path).status_code == 200
        assert mirror[1].got[-1][:2] == ("GET", path)
    text = client.get("/metrics").text
    assert "vlmprune_requests_in_flight 0.0" in text
    assert text.endswith("vllm:x 1\n")


URL = "http://127.0.0.1:9/x.png"


@pytest.mark.parametrize("image", [
    {"type": "input_image", "image_url": URL}, {"type": "input_image", "image_url": GOOD},
    {"type": "input_image", "file_id": "f"}, {"type": "image_url", "image_url": {"url": URL}},
    {"type": "input_text", "text": "x", "image_url": URL}, {"type": "text", "text": "x", "uuid": "u", "image_url": URL},
    {"type": "input_file", "file_url": URL}, {"type": "image_embeds", "image_embeds": "AAAA"}, {"image_url": URL},
])  # fmt: skip
def test_no_image_goes_round_the_checks(client: httpx.Client, mirror: Any, image: dict[str, Any]) -> None:
    turn = {"role": "user", "content": [image, {"type": "text", "text": "x"}]}
    bodies: list[tuple[str, Any]] = [
        ("/v1/responses", {"input": [turn]}), ("/v1/responses", {"input": [image]}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "1", "output": [image]}]}),
        ("/v1/responses", {"input": "x", "prompt": {"id": "1", "variables": {"a": image}}}),
        ("/v1/responses", {"input": "x", "previous_input_messages": [turn]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "mcp", "server_url": URL, "server_label": "s"}]}),
        ("/tokenize", {"messages": [turn]}), ("/v1/completions", {"prompt": "x", "prompt_embeds": "AAAA"}),
        ("/v1/completions", {"prompt": image}), ("/v1/completions", {"prompt": "x", "mm_payload": image}),
    ]  # fmt: skip
    for path, body in bodies:
        got = client.post(path, json=body)
        assert got.status_code == 400, (path, body, got.text)
        assert "\n" not in message_of(got)
    assert not mirror[1].got


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", path) for path in (
            "/invocations", "/v1/messages", "/v1/load_lora_adapter", "/collective_rpc", "/sleep", "/pooling", "/score",
            "/reset_prefix_cache", "/inference/v1/generate", "/v1/audio/transcriptions", "/v1/chat/completions/render",
            "/v1/chat/completions/", "//v1/chat/completions", "/v1/responses/r/cancel", "/server_info", "/ping",
        )),
        *(("GET", path) for path in (
            "/server_info", "/tokenizer_info", "/v1/responses/..", "/v1/responses/%2e%2e", "/v1/responses/a%2Fb", "/",
            "/docs", "/openapi.json", CHAT, "/v1/responses/a%0d%0ab",
        )),
        ("DELETE", "/v1/models"), ("PUT", CHAT), ("PATCH", "/v1/responses"), ("TRACE", "/version"),
    ],
)  # fmt: skip
def test_what_is_never_passed(client: httpx.Client, mirror: Any, method: str, path: str) -> None:
    got = client.request(method, path, json={"messages": TALK} if method == "POST" else None)
    assert got.status_code in (404, 405)
    assert "is not served here" in message_of(got)
    assert not mirror[1].got


@only_full
def test_the_same_limits_hold_on_every_route(uniform: Encoder, mirror: Any) -> None:
    with proxy(uniform, mirror[0], limits=Limits(body=1000, values=50)) as (client, state):
        for path in ("/v1/completions", "/v1/responses", "/tokenize", CHAT):
            assert client.post(path, json={"prompt": "x" * 1001}).status_code == 413
            assert client.post(path, json={"prompt": [1] * 60}).status_code == 413
            eventually(lambda: state.requests.used == 0)  # an answer is here before its place is free
            with state.requests.claim() as others:
                others.add(state.requests.most)
                assert client.post(path, json={"prompt": "x"}).status_code == 503
        eventually(lambda: state.requests.used == state.bodies.used == 0)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_plain_strings_and_refusals_are_parts_too(client: httpx.Client, mirror: Any) -> None:
    said = [{"type": "refusal", "refusal": "I cannot."}]
    body = chat("x", {"type": "image_url", "image_url": GOOD})
    body["messages"] += [{"role": "assistant", "content": said, "refusal": "no"}, *TALK]
    assert client.post(CHAT, json=body).status_code == 200
    sent = json.loads(mirror[1].got[-1][3])["messages"]
    assert sent[1] == {"role": "assistant", "content": said, "refusal": "no"}
    assert sent[0]["content"][0]["type"] == "image_embeds"


@only_full
def test_alive_and_ready_are_two_things(uniform: Encoder) -> None:
    with proxy(uniform, "http://127.0.0.1:9") as (client, _):
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 503]
