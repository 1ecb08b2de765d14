"""Servers of the tests: real ones, on the loopback address, each ended by whoever started it."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from PIL import Image

import vlmprune
from tests.support.engines import picture
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.proxy import ProxySettings, create_app

ROOT = Path(__file__).parents[2]
KEEP = 0.2
QUESTIONS = ("What colour is the star?", "How many circles are there?", "What shape is left of the star?")
ASKED = [(number, QUESTIONS[number % 3]) for number in range(12)]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes] | None = None, seconds: float = 900) -> None:
    """Until a server answers, which takes minutes where the machine is busy."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process is None or process.poll() is None, f"the server of {url} ended with {process.returncode}"
        try:
            if httpx.get(url, timeout=60, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} did not answer in {seconds} seconds")


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of an application that a thread of this process serves."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 600
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def engine_process(delay: float = 0.0) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address and process of a `tiny_engine`, for tests that end it."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.serving.tiny_engine", str(port), str(delay)], cwd=ROOT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


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


def two_hundred(encoder: Encoder, engine: str, pair: Any) -> None:
    """200 requests at concurrency 16, every second one streamed, with exits at the median of S: every answer is right,
    none is lost."""
    large, small, processor = pair
    with vlmprune.wrap(large, vlmprune.SGL(small, keep=KEEP, layer=0, exit_at=0.0), processor=processor) as pruned:
        reports = [pruned.ask(picture(n), q).report for n, q in ASKED]
    sure = sorted((r.confidence[0] + r.consistency[0]) / 2 for r in reports)
    exit_at = (sure[5] + sure[6]) / 2
    expected = here(pair, encoder.positions, exit_at)
    assert 0 < sum(exited for _, exited in expected) < len(expected)

    def ask(i: int) -> tuple[str, bool]:
        number, question = ASKED[i % len(ASKED)]
        body = chat(question, picture(number), stream=i % 2 == 1)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.read()
        exited = answer.headers.get("x-vlmprune-exited") == "1"
        return (streamed(events(iter(answer.text.splitlines()))) if i % 2 else text_of(answer)).strip(), exited

    with proxy(encoder, engine, exit_at=exit_at) as (client, state), ThreadPoolExecutor(16) as pool:
        got = list(pool.map(ask, range(200)))
        assert metric(client, 'vlmprune_requests_total{status="200"}') == 200
        assert metric(client, "vlmprune_exits_total") == sum(exited for _, exited in got)
        assert metric(client, "vlmprune_visual_tokens_kept_total") == 39 * sum(not exited for _, exited in got)
        assert state.busy == 0
    wrong = [(i, one, expected[i % len(ASKED)]) for i, one in enumerate(got) if one != expected[i % len(ASKED)]]
    assert not wrong, wrong[:5]
