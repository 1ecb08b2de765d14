"""Servers of the tests: real ones, on the loopback address, each ended by whoever started it."""

from __future__ import annotations

import base64
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import httpx
from PIL import Image

import vlmprune
from eval.provenance import ROOT
from eval.serving.servers import Process, free_port, serving, wait_for
from tests.support.engines import picture
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.proxy import ProxySettings, create_app

KEEP = 0.2
QUESTIONS = ("What colour is the star?", "How many circles are there?", "What shape is left of the star?")
ASKED = [(number, QUESTIONS[number % 3]) for number in range(12)]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as a function wants it, and writes no log."""

    def reply(self, content: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextmanager
def served(handler: type[Handler]) -> Iterator[str]:
    """The address of a server in this process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def engine_process(delay: float = 0.0) -> Iterator[tuple[str, Process]]:
    """The address and process of a `tiny_engine`, for tests that end it."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.serving.tiny_engine", str(port), str(delay)], cwd=ROOT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def eventually(true: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


class Command:
    """The command `vlmprune serve-proxy` in a process of its own, with its limits as they come."""

    def __init__(self, engine: str, *arguments: str) -> None:
        self.address = f"http://127.0.0.1:{(port := free_port())}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vlmprune", "serve-proxy", "--engine", engine, "--port", str(port), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> Self:
        wait_for(f"{self.address}/health", self.process)
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def proxy(encoder: Encoder, engine: str, **settings: Any) -> Iterator[tuple[httpx.Client, Any]]:
    """A proxy in this process, on a port of its own: a client for it, and its state."""
    app = create_app(encoder, ProxySettings(engine, **settings))
    with serving(app) as address, httpx.Client(base_url=address, timeout=600, trust_env=False) as client:
        yield client, app.state.proxy


def data_url(image: Image.Image, kind: str = "png") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def chat(question: str, *images: Image.Image | dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request's body; images are pictures or finished parts."""
    parts = [image if isinstance(image, dict) else image_part(data_url(image)) for image in images]
    content = [*parts, {"type": "text", "text": question}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def message_of(answer: httpx.Response) -> str:
    """The sentence of an error."""
    return str(answer.json()["error"]["message"])


def events(lines: Iterator[str]) -> list[Any]:
    """The data of a stream, "[DONE]" as it is."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def streamed(found: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for one in found if one != "[DONE]" for choice in one.get("choices", [])
    )


def metric(client: httpx.Client, name: str) -> float:
    found = re.findall(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, flags=re.MULTILINE)
    return float(found[0]) if found else 0.0


def here(pair: Any, positions: str, exit_at: float | None = None) -> list[tuple[str, bool]]:
    """What the wrapped model answers in this process, and whether the guide did."""
    large, small, processor = pair
    method = vlmprune.SGL(small, keep=KEEP, layer=0, positions=positions, exit_at=exit_at)
    with vlmprune.wrap(large, method, processor=processor) as pruned:
        answers = [pruned.ask(picture(number), question, max_new_tokens=64) for number, question in ASKED]
    return [(answer.text, answer.report.exited[0]) for answer in answers]


def with_exits(pair: Any, positions: str) -> tuple[float, list[tuple[str, bool]]]:
    """A threshold at the median of S, and what is answered with it."""
    large, small, processor = pair
    with vlmprune.wrap(large, vlmprune.SGL(small, keep=KEEP, layer=0, exit_at=0.0), processor=processor) as pruned:
        reports = [pruned.ask(picture(n), q).report for n, q in ASKED]
    sure = sorted((r.confidence[0] + r.consistency[0]) / 2 for r in reports)
    exit_at = (sure[5] + sure[6]) / 2
    expected = here(pair, positions, exit_at)
    assert 0 < sum(exited for _, exited in expected) < len(expected)
    return exit_at, expected


def ask_many(
    client: httpx.Client, expected: list[tuple[str, bool]], numbers: range, at_once: int, drop_every: int
) -> tuple[int, int]:
    """Requests of these numbers, every second one streamed, of which every `drop_every`-th hangs up once its answer has
    begun: all others are answered, and right. How many were, and how many of them the guide answered."""

    def ask(i: int) -> tuple[str, bool] | None:
        number, question = ASKED[i % len(ASKED)]
        body = chat(question, picture(number), stream=i % 2 == 1)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            if i % drop_every == drop_every - 1:
                next(answer.iter_raw())
                return None
            answer.read()
        exited = answer.headers.get("x-vlmprune-exited") == "1"
        return (streamed(events(iter(answer.text.splitlines()))) if i % 2 else text_of(answer)).strip(), exited

    with ThreadPoolExecutor(at_once) as pool:
        got = {i: one for i, one in zip(numbers, pool.map(ask, numbers), strict=True) if one is not None}
    wrong = [(i, one, expected[i % len(ASKED)]) for i, one in got.items() if one != expected[i % len(ASKED)]]
    assert not wrong, wrong[:5]
    assert len(got) == sum(i % drop_every != drop_every - 1 for i in numbers)
    return len(got), sum(exited for _, exited in got.values())


def many(encoder: Encoder, engine: str, pair: Any, count: int, at_once: int) -> None:
    """So many requests through a proxy in this process, of which every tenth hangs up: none is wrong, none is lost."""
    exit_at, expected = with_exits(pair, encoder.positions)
    with proxy(encoder, engine, exit_at=exit_at) as (client, state):
        answered, exits = ask_many(client, expected, range(count), at_once, 10)
        assert metric(client, 'vlmprune_requests_total{status="200"}') == count
        assert exits <= metric(client, "vlmprune_exits_total") <= exits + count - answered
        eventually(lambda: state.requests.used == state.bodies.used == state.pixels.used == 0)
