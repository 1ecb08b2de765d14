"""vLLM's own OpenAI-compatible server behind the proxy."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import torch

from eval.serving.servers import vllm_server
from tests.serving.mutants import counting_site, requests
from tests.serving.payloads import mutated
from tests.serving.support import (
    ASKED,
    KEEP,
    QUESTIONS,
    chat,
    events,
    here,
    image_part,
    many,
    message_of,
    proxy,
    streamed,
    text_of,
)
from tests.support.engines import picture, save_for_vllm
from tests.support.grid import either
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.options import engine_arguments
from vlmprune.serving.payload import encoded

pytest.importorskip("vllm", reason="vLLM is not installed; .ci/vllm makes an environment that has it")
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module", params=either(["original"], ["original", "compact"]))
def server(
    request: pytest.FixtureRequest, pair: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Encoder, subprocess.Popen[bytes]]]:
    """Its address, an encoder for it, and its process."""
    large, small, processor = pair
    folder = save_for_vllm(large, tmp_path_factory.mktemp("llava"), processor)
    with vllm_server(folder, *engine_arguments(folder, request.param)) as (address, process):
        encoder = Encoder(str(folder), "sgl", guide=small, keep=KEEP, processor=processor, positions=request.param)
        yield address, encoder, process


def test_answers_and_streams(server: Any, pair: Any) -> None:
    address, encoder, _ = server
    expected = [text for text, _ in here(pair, encoder.positions)]
    with proxy(encoder, address) as (client, _):
        assert client.get("/ready").status_code == 200
        got = [text_of(client.post("/v1/chat/completions", json=chat(q, picture(n)))) for n, q in ASKED]
        assert [text.strip() for text in got] == expected
        for (number, question), text in zip(ASKED[:3], expected, strict=False):
            body = chat(question, picture(number), stream=True)
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                found = events(answer.iter_lines())
            assert (streamed(found).strip(), found[-1]) == (text, "[DONE]")


@pytest.mark.parametrize(("count", "at_once"), either([(64, 64)], [(200, 16), (64, 64)]))
def test_many_requests_with_exits_and_clients_that_hang_up(server: Any, pair: Any, count: int, at_once: int) -> None:
    address, encoder, _ = server
    many(encoder, address, pair, count, at_once)


def test_two_images_and_parts_that_a_client_encoded(server: Any) -> None:
    address, encoder, _ = server
    with proxy(encoder, address, embeddings=True) as (client, _):
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0), picture(1)))
        text = text_of(got)
        parts = encoder.encode_many([([picture(0), picture(1)], QUESTIONS[0])])[0].parts()
        assert text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], *parts))) == text
        # The same parts need no proxy.
        direct = httpx.post(f"{address}/v1/chat/completions", json=chat(QUESTIONS[0], *parts), timeout=600)
        assert text_of(direct) == text


def test_bad_embeddings_leave_the_engine_alive(server: Any) -> None:
    address, encoder, _ = server
    good = chat(QUESTIONS[0], picture(0))
    part = encoder.chat_part(picture(0), QUESTIONS[0])
    rows = torch.zeros(39, encoder.tower.width)
    with proxy(encoder, address, embeddings=True) as (client, _):
        before = text_of(client.post("/v1/chat/completions", json=good))
        for bad in (rows * float("nan"), rows[:, 1:], rows[None, None]):
            value = part["image_embeds"]
            made = {**value, "image_embeds": encoded(bad)} if isinstance(value, dict) else encoded(bad)
            body = chat(QUESTIONS[0], {"type": "image_embeds", "image_embeds": made})
            assert client.post("/v1/chat/completions", json=body).status_code == 400
            if isinstance(value, dict):  # past the proxy, the plugin looks itself
                got = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=600)
                assert got.status_code == 400, got.text
        assert text_of(client.post("/v1/chat/completions", json=good)) == before


def test_three_hundred_mutated_embeddings(server: Any) -> None:
    """Through the proxy, and straight to the engine where the plugin reads them: each is a client's error in one
    sentence, the process lives, and what it answers is the same as before."""
    address, encoder, process = server
    if encoder.positions == "compact":
        pytest.skip("the plugin is not used there, and stock vLLM does not look at what it gets")
    image, question = picture(0), QUESTIONS[0]
    part = encoder.chat_part(image, question)

    def post(to: str, made: Any) -> httpx.Response:
        body = chat(question, {"type": "image_embeds", "image_embeds": made})
        return httpx.post(f"{to}/v1/chat/completions", json=body, timeout=120, trust_env=False)

    with proxy(encoder, address, embeddings=True) as (client, _), ThreadPoolExecutor(4) as pool:
        ways = {"proxy": str(client.base_url), "engine": address}
        before = {way: text_of(post(to, part["image_embeds"])) for way, to in ways.items()}
        for seed, (way, to) in enumerate(ways.items()):
            for (name, _), got in pool.map(
                lambda one, to=to: (one, post(to, one[1])), mutated(part["image_embeds"], 300, seed)
            ):
                assert 400 <= got.status_code < 500, (way, name, got.text)
                assert message_of(got).count("\n") == 0, (way, name, got.text)
        assert process.poll() is None
        assert {way: text_of(post(to, part["image_embeds"])) for way, to in ways.items()} == before
        # Images are put together before a model's code sees them: 300,000 x 1 and 1 x 300,000 would be 335 GiB.
        for shapes in (((300_000, 1), (1, 300_000)), ((39, 192), (39, 191)), ((39, 192), (1,))):
            each = [{**part["image_embeds"], "image_embeds": encoded(torch.zeros(shape))} for shape in shapes]
            body = chat(question, *[{"type": "image_embeds", "image_embeds": one} for one in each])
            got = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120, trust_env=False)
            assert got.status_code == 400, got.text
        assert text_of(post(address, part["image_embeds"])) == before["engine"]


def test_nobody_is_visited(server: Any) -> None:
    address, encoder, _ = server
    with counting_site() as (site, hits), proxy(encoder, address) as (client, _):
        for body in requests(site, 200, seed=2):
            assert client.post("/v1/chat/completions", json=body).status_code in (200, 400, 403)
        assert hits == []
        # Straight to the engine, its option for allowed domains is what protects.
        for part in (
            image_part(f"{site}/1.png"),
            {"type": "text", "text": "x", "uuid": "u", "image_url": f"{site}/2.png"},
        ):
            got = httpx.post(f"{address}/v1/chat/completions", json=chat("x", part), timeout=60, trust_env=False)
            assert 400 <= got.status_code < 500, got.text
        assert hits == []


@contextmanager
def slowed(group: int) -> Iterator[None]:
    """Processes that run a twentieth of the time."""
    end = threading.Event()

    def stop_and_go() -> None:
        with suppress(ProcessLookupError):  # killed in between
            while not end.wait(0.005):
                os.killpg(group, signal.SIGSTOP)
                time.sleep(0.1)
                os.killpg(group, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_an_engine_killed_in_the_middle_of_a_stream(server: Any) -> None:
    """Last of its server, which it ends. So long an answer of so slow an engine does not end before that."""
    address, encoder, process = server
    with proxy(encoder, address) as (client, _):
        body = chat(QUESTIONS[0], picture(0), stream=True, ignore_eos=True, max_tokens=1800)
        with slowed(process.pid), client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.killpg(process.pid, signal.SIGKILL)
            assert events(lines)[-1]["error"]["code"] == 502
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0)))
        assert (got.status_code, message_of(got)) == (503, "The engine cannot be reached; try again later.")
