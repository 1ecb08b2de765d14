"""What the requests of all clients together may take: pixels, bytes and memory, of the real proxy process."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from eval.serving.servers import serving
from tests.serving.support import (
    KEEP,
    QUESTIONS,
    Command,
    ask_many,
    chat,
    data_url,
    eventually,
    image_part,
    message_of,
    metric,
    proxy,
    text_of,
    with_exits,
)
from tests.serving.tiny_engine import create
from tests.support.engines import picture
from tests.support.grid import only_by_hand, only_full
from vlmprune import VlmpruneError
from vlmprune.serving.batch_worker import BatchWorker
from vlmprune.serving.chat import Limits, Quota, read_chat
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.fields import Refused

MB = 2**20


def solid(width: int, height: int) -> dict[str, Any]:
    """A part whose picture is large and whose file is small."""
    return image_part(data_url(Image.new("RGB", (width, height), "red")))


def read(body: dict[str, Any], **limits: int) -> Any:
    return read_chat(bytearray(json.dumps(body).encode()), Limits(**limits))


# --- of a request --------------------------------------------------------------------------------------------------


def test_sizes_are_read_from_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    body = chat("x", solid(300, 200), solid(10, 20))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("unpacked"))
    found = read(body)
    assert [picture.pixels for picture in found.images] == [60_000, 200]
    assert found.pixels == 60_200


def test_a_request_and_its_images_have_limits_of_their_own() -> None:
    limits = {"pixels": 1000, "request_pixels": 2500, "open_pixels": 10_000}
    part = solid(25, 40)
    assert read(chat("x", part, part), **limits).pixels == 2000
    with pytest.raises(Refused, match="3,000 pixels together; send at most 2,500") as caught:
        read(chat("x", part, part, part), **limits)
    assert caught.value.status == 413
    with pytest.raises(Refused, match="1,040 pixels; send at most 1,000"):
        read(chat("x", solid(26, 40)), **limits)


def test_the_last_number_that_is_allowed_and_the_first_that_is_not() -> None:
    part = solid(2, 2)
    assert len(read(chat("x", part, part), images=2).images) == 2
    with pytest.raises(Refused, match="3 images; send at most 2"):
        read(chat("x", part, part, part), images=2)
    assert read(chat("x", part, max_tokens=9), tokens=9).body["max_tokens"] == 9
    with pytest.raises(Refused, match="from 1 to 9, got 10"):
        read(chat("x", part, max_tokens=10), tokens=9)


def test_one_header_that_lies_about_its_size_unpacks_nothing() -> None:
    content = bytearray(base64.b64decode(data_url(Image.new("1", (8, 8))).partition(",")[2]))
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(VlmpruneError, match="pixels") as caught:
        read(chat("x", image_part("data:image/png;base64," + base64.b64encode(content).decode())))
    assert "\n" not in str(caught.value)


def test_texts_and_values_are_counted() -> None:
    with pytest.raises(Refused, match="characters of text") as caught:
        read(chat("x" * 11, solid(2, 2)), text=10)
    assert caught.value.status == 413
    for many in (b"[" + b"[]," * 600_000 + b"1]", b'{"a":' * 600_000, b"[" + b"1," * 600_000 + b"1]"):
        with pytest.raises(Refused, match="more than 500,000 values"):
            read_chat(many, Limits())


def test_text_alone_is_the_engines_matter() -> None:
    found = read(chat("x" * 11, max_tokens=8192), text=10, tokens=9)
    assert (found.body["max_tokens"], found.texts) == (8192, ["x" * 11])


def test_a_file_is_held_once() -> None:
    """The body is emptied, and of the base64 text nothing is left in what was read."""
    raw = bytearray(json.dumps(chat("x", picture(0))).encode())
    found = read_chat(raw, Limits())
    assert not raw
    assert found.images[0].content.startswith(b"\x89PNG")
    assert "base64" not in repr(found.body)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"pixels": 0}, "pixels=0"),
        ({"text": float("nan")}, "text=nan"),
        ({"request_pixels": 10}, "request_pixels=10 is below pixels"),
        ({"open_pixels": 10}, "open_pixels=10 is below request_pixels"),
        ({"open_bodies": 10}, "open_bodies=10 is below body"),
    ],
)
def test_limits_that_contradict_each_other(limits: dict[str, Any], said: str) -> None:
    with pytest.raises(VlmpruneError, match=said):
        Limits(**limits)


# --- of all open requests ------------------------------------------------------------------------------------------


def test_what_is_shared_is_given_back() -> None:
    shared = Quota(10, "The house is full")
    with shared.claim() as first, shared.claim() as second:
        first.add(6)
        with pytest.raises(Refused, match="The house is full; come back in a second") as caught:
            second.add(5)
        second.add(4)
        assert (caught.value.status, shared.used) == (503, 10)
        second.keep(1)
        second.keep(7)
        assert shared.used == 7
    assert shared.used == 0


def test_who_finds_nothing_left_is_told_to_come_back(uniform: Encoder) -> None:
    """No engine is there: what is let in gets as far as that."""
    with proxy(uniform, "http://127.0.0.1:9") as (client, state):

        def post() -> tuple[int, str, str | None]:
            got = client.post("/v1/chat/completions", json=chat("x", picture(0)))
            return got.status_code, message_of(got), got.headers.get("retry-after")

        for shared, said in ((state.pixels, "many pixels waiting"), (state.bodies, "many bytes of requests")):
            with shared.claim() as others:
                others.add(shared.most - 1000)
                status, message, retry = post()
                assert (status, said in message, retry) == (503, True, "1")
            assert "engine cannot be reached" in post()[1]
            assert shared.used == 0


def test_a_batch_weighs_no_more_than_it_may() -> None:
    batches: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        batches.append(items)
        return items

    async def run() -> list[int]:
        stage: BatchWorker[int, int] = BatchWorker("test", work, most=8, weight=lambda item: item, heaviest=10)
        return await asyncio.gather(*map(stage.result, (6, 5, 4, 20, 1)))

    assert asyncio.run(run()) == [6, 5, 4, 20, 1]
    assert batches == [[6, 4], [5, 1], [20]]


class Body:
    """What a request holds; a weak reference tells whether anybody has it yet."""


def test_what_clients_give_up_is_let_go_while_a_batch_runs() -> None:
    """A batch may run for a minute, and the limits on open requests no longer count one whose client has hung up."""
    entered, go_on = threading.Event(), threading.Event()

    def work(items: list[Body]) -> list[int]:
        entered.set()
        assert go_on.wait(60)
        return [1] * len(items)

    async def run() -> None:
        stage: BatchWorker[Body, int] = BatchWorker("test", work)
        first = asyncio.create_task(stage.result(Body()))
        assert await asyncio.to_thread(entered.wait, 60)
        bodies = [Body() for _ in range(5)]
        seen = [weakref.ref(one) for one in bodies]
        tasks = [asyncio.create_task(stage.result(one)) for one in bodies]
        bodies.clear()
        await asyncio.sleep(0)  # all wait
        assert all(task.cancel() for task in tasks[:4])
        await asyncio.wait(tasks[:4])
        gc.collect()
        assert [one() is None for one in seen] == [True] * 4 + [False]
        go_on.set()
        assert await first == await tasks[4] == 1

    asyncio.run(run())


class Process(Command):
    """The proxy, and what it takes of the machine."""

    def memory(self, name: str) -> float:
        """In MB: "VmRSS" now, "VmHWM" the most since `forget`."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024 / MB

    def forget(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def post(self, body: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/chat/completions", json=body, timeout=600, trust_env=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the memory of a process is read from Linux' /proc")
    with serving(create()) as engine, Process(engine) as server:
        text_of(server.post(chat(QUESTIONS[0], picture(0))))
        yield server


@only_full
@pytest.mark.timeout(900)
def test_eight_requests_of_eight_large_solid_pictures(server: Process) -> None:
    """More than a request may have; ordinary ones beside them go on."""
    heavy, light = chat(QUESTIONS[0], *[solid(6000, 4000)] * 8), chat(QUESTIONS[0], picture(0))
    server.forget()
    idle = server.memory("VmRSS")
    with ThreadPoolExecutor(12) as pool:
        large = [pool.submit(server.post, heavy) for _ in range(8)]
        small = [pool.submit(server.post, light) for _ in range(4)]
        assert {text_of(one.result()) for one in small} == {text_of(server.post(light))}
    more = server.memory("VmHWM") - idle
    print(f"\n{more:.0f} MB over {idle:.0f} MB")
    assert more < 1000
    assert {one.result().status_code for one in large} == {413}
    assert "72,000,000 pixels together" in message_of(large[0].result())  # it ends at the first that is too many


@only_full
@pytest.mark.timeout(900)
def test_as_many_pixels_as_a_request_may_have(server: Process) -> None:
    """Two at once are unpacked one after the other. A machine that is busy may take longer than they may (504)."""
    heavy = chat(QUESTIONS[0], *[solid(6000, 4000)] * 2)
    server.forget()
    idle = server.memory("VmRSS")
    with ThreadPoolExecutor(2) as pool:
        states = {one.status_code for one in pool.map(server.post, [heavy] * 2)}
    more = server.memory("VmHWM") - idle
    print(f"\n{more:.0f} MB over {idle:.0f} MB")
    assert states <= {200, 504}
    assert more < 1000


@only_full
def test_bodies_of_all_requests_together(server: Process) -> None:
    body = b'{"messages": [{"role": "user", "content": "' + b"a" * (30 * MB) + b'"}]}'
    server.forget()
    idle = server.memory("VmRSS")

    def post(number: int) -> int:
        return httpx.post(
            f"{server.address}/v1/chat/completions", content=body, timeout=600, trust_env=False
        ).status_code

    with ThreadPoolExecutor(12) as pool:
        states = list(pool.map(post, range(12)))
    print(f"\n{server.memory('VmHWM') - idle:.0f} MB over {idle:.0f} MB")
    assert set(states) <= {404, 413, 503}  # what the proxy lets through, the engine refuses: no model is named
    assert server.memory("VmHWM") - idle < 1000
    text_of(server.post(chat(QUESTIONS[0], picture(0))))


@only_by_hand
@pytest.mark.timeout(3600)
def test_a_thousand_requests_at_concurrency_thirty_two(pair: Any) -> None:
    """With exits, and every tenth client hangs up: none is wrong, none is lost, and after the first 200 the proxy's
    memory stays as it is."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the memory of a process is read from Linux' /proc")
    exit_at, expected = with_exits(pair, "original")
    options = ["--keep", str(KEEP), "--exit-at", repr(exit_at), "--access-log", "off"]
    with (
        serving(create()) as engine,
        Process(engine, *options) as server,
        httpx.Client(base_url=server.address, timeout=3600, trust_env=False) as client,
    ):
        held = []
        for start in range(0, 1000, 200):
            answered, exits = ask_many(client, expected, range(start, start + 200), 32, 10)
            held.append(server.memory("VmRSS"))
            print(f"\n{answered} answered, {exits} by the guide, {held[-1]:.0f} MB", end="")
        assert metric(client, 'vlmprune_requests_total{status="200"}') == 1000
        eventually(lambda: metric(client, "vlmprune_requests_in_flight") == 0)
    assert max(held[1:]) < held[0] + 30
