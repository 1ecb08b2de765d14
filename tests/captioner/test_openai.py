"""The endpoint aggregator against a real server on the loopback: what it sends, and what it does when that fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.captioner.scripted import HONEST, World, lines, patches
from vlmprune import VlmpruneError
from vlmprune.captioner import AggregatorError, EndpointAggregator, Grouping, openai
from vlmprune.captioner.llm import SCHEMAS
from vlmprune.captioner.pipeline import identity_of

UNIQUE = {"similar": [], "contradictory": [], "unique": [1, 2]}
TWO = [["a"], ["b"]]


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server: plays back `script`, then answers honestly."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Any] = []
        self.over = threading.Event()  # set when the test ends: until then a hanging request hangs
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        step = self.server.script.pop(0) if self.server.script else {}
        if step == "hang":
            self.server.over.wait()
            return
        if step == "hang up":
            self.connection.close()
            return
        task = body["response_format"]["json_schema"]["name"] if "response_format" in body else "group"
        honest: Any = HONEST[task]
        content = honest(lines(body["messages"][1]["content"])) if callable(honest) else honest
        choice = {"message": {"content": json.dumps(content)}, "finish_reason": "stop", **step.get("choice", {})}
        payload = step.get("raw", json.dumps({"choices": [choice]})).encode()
        self.send_response(step.get("status", 200))
        for name, value in step.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield running
    running.over.set()
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client waited each time; no test does."""
    found: list[float] = []
    monkeypatch.setattr(openai.time, "sleep", found.append)
    return found


def client(server: Server, **options: Any) -> EndpointAggregator:
    return EndpointAggregator(server.url, "some-model", "sk-secret", **{"timeout": 300.0, **options})


def test_a_whole_caption_through_the_server(server: Server) -> None:
    world = World(client(server))
    samples = [["a car. a tree.", "wrong."], ["b."], ["c."], ["d."]]
    assert world.run("whole.", patches((0, 0, 90, 50), (10, 0, 100, 50)), samples) == [
        "a car",
        "a tree",
        "b",
        "c",
        "d",
        "whole",
    ]
    assert not any("wrong" in json.dumps(body) for _, _, body in server.seen[1:])


def test_what_is_sent(server: Server) -> None:
    assert client(server, seed=3).group(TWO) == Grouping(unique=(0, 1))
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret"
    assert (body["model"], body["temperature"]) == ("some-model", 0.2)
    assert body["response_format"]["json_schema"] == {"name": "group", "schema": SCHEMAS["group"], "strict": True}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    client(server, seed=3).group(TWO)
    client(server, seed=4).group(TWO)
    seeds = [body["seed"] for _, _, body in server.seen]
    assert seeds[0] == seeds[1] != seeds[2]


def test_structured_output_can_be_switched_off(server: Server) -> None:
    client(server, structured=False).group(TWO)
    ((_, _, body),) = server.seen
    assert "response_format" not in body
    assert '"contradictory"' in body["messages"][1]["content"]  # the schema stands in the prompt as well


@pytest.mark.parametrize("status", [429, 500, 502, 503, 408])
def test_a_busy_server_is_asked_again_with_longer_pauses(server: Server, waits: list[float], status: int) -> None:
    server.script = [{"status": status}] * 3
    assert client(server).group(TWO) == Grouping(unique=(0, 1))
    assert len(server.seen) == 4
    assert [round(wait / 2**i, 3) >= 1.0 for i, wait in enumerate(waits)] == [True] * 3
    assert all(wait <= 1.25 * 2**i for i, wait in enumerate(waits))


def test_retry_after_is_obeyed_within_reason(server: Server, waits: list[float]) -> None:
    later = [
        {"status": 429, "headers": {"Retry-After": value}} for value in ("7", "9999", "Wed, 21 Oct 2026 07:28:00 GMT")
    ]
    server.script = later
    client(server).group(TWO)
    assert waits[:2] == [7.0, 60.0]
    assert 4.0 <= waits[2] <= 5.0  # a date is left to the back-off


def test_a_silent_server_times_out_and_is_asked_again(server: Server) -> None:
    server.script = ["hang"]
    # On a busy machine an honest answer may be late as well, and is asked for again.
    assert client(server, timeout=1.0, retries=50).group(TWO) == Grouping(unique=(0, 1))
    assert len(server.seen) >= 2


def test_a_lost_connection_is_tried_again(server: Server) -> None:
    server.script = ["hang up"]
    assert client(server).group(TWO) == Grouping(unique=(0, 1))


@pytest.mark.parametrize("step", ["hang", {"status": 500, "raw": "out of\nmemory"}, {"status": 429}, "hang up"])
def test_giving_up_says_why(server: Server, step: Any) -> None:
    server.script = [step] * 3
    with pytest.raises(AggregatorError, match=r"gave no answer in 3 tries \(the last: .+\); check") as caught:
        client(server, timeout=1.0 if step == "hang" else 300.0, retries=2).group(TWO)
    if step != "hang":  # whether a server has read what it did not answer in time is not said
        assert len(server.seen) == 3
    assert "sk-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 302])
def test_a_refusal_is_not_repeated(server: Server, status: int) -> None:
    away = {"Location": "http://127.0.0.1:9/elsewhere"}  # nobody may be sent the key
    server.script = [{"status": status, "raw": "no such model", "headers": away}]
    with pytest.raises(AggregatorError, match=rf"refused the request \(status {status}: no such model\)"):
        client(server).group(TWO)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "raw", ["<html>hello</html>", "{}", '{"choices": []}', '{"choices": [{"message": null}]}', "[1]"]
)
def test_an_answer_that_is_no_completion(server: Server, raw: str) -> None:
    server.script = [{"raw": raw}]
    with pytest.raises(AggregatorError, match="must answer with a chat completion"):
        client(server).group(TWO)


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"finish_reason": "length"}, "cut off"),
        ({"message": {"content": None, "refusal": "no"}}, "no content"),
        ({"message": {"content": "Sure! Here you are."}}, "no JSON object"),
        ({"message": {"content": json.dumps({**UNIQUE, "unique": [1]})}}, "left out"),
    ],
)
def test_a_reply_that_does_not_comply_is_sent_back(server: Server, choice: dict[str, Any], problem: str) -> None:
    server.script = [{"choice": choice}]
    assert client(server).group(TWO) == Grouping(unique=(0, 1))
    messages = server.seen[1][2]["messages"]
    assert problem in messages[-1]["content"]
    roles = [message["role"] for message in messages[1:]]
    assert roles == ["user", "assistant", "user"][: len(roles)]  # turns alternate, also where there was no reply


def test_no_server_at_all() -> None:
    nobody = EndpointAggregator("http://127.0.0.1:9/v1", "m", retries=1, timeout=1.0)
    with pytest.raises(AggregatorError, match="gave no answer in 2 tries"):
        nobody.group(TWO)


def test_the_key_is_in_no_record() -> None:
    one = EndpointAggregator("http://127.0.0.1:9/v1", "m", "sk-secret")
    assert "sk-secret" not in repr(one) + json.dumps(identity_of(one))


@pytest.mark.parametrize("options", [{"timeout": 0}, {"retries": -1}, {"backoff": -1.0}, {"attempts": 0}])
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(VlmpruneError):
        EndpointAggregator("http://127.0.0.1:9/v1", "m", **options)


def test_an_address_that_is_none() -> None:
    with pytest.raises(VlmpruneError, match="'localhost:8000'"):
        EndpointAggregator("localhost:8000", "m")
