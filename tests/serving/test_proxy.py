"""The proxy in front of a real engine, and everything that may go wrong between a client and it."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eval.serving.servers import serving
from tests.serving.support import (
    ASKED,
    KEEP,
    QUESTIONS,
    Command,
    Handler,
    chat,
    data_url,
    engine_process,
    events,
    eventually,
    here,
    image_part,
    many,
    message_of,
    metric,
    proxy,
    served,
    streamed,
    text_of,
)
from tests.serving.tiny_engine import create
from tests.support.engines import picture
from tests.support.grid import either, only_full
from vlmprune.apps.cli import app
from vlmprune.serving.chat import Limits
from vlmprune.serving.encoder import Encoder
from vlmprune.serving.payload import encoded


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with serving(create()) as address:
        yield address


@pytest.fixture(scope="module")
def slow() -> Iterator[str]:
    """Fifty milliseconds a token."""
    with serving(create(0.05)) as address:
        yield address


@pytest.fixture(scope="module", params=["original", "compact"])
def encoder(request: pytest.FixtureRequest, pair: Any) -> Encoder:
    large, small, processor = pair
    return Encoder(large, "sgl", guide=small, keep=KEEP, processor=processor, positions=request.param)


@pytest.fixture(scope="module")
def any_encoder(pair: Any) -> Encoder:
    large, small, processor = pair
    return Encoder(large, "sgl", guide=small, keep=KEEP, processor=processor)


def seen(engine: str) -> dict[str, int]:
    return dict(httpx.get(f"{engine}/seen", trust_env=False).json())


# --- answers -------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_wrapped_model(encoder: Encoder, engine: str, pair: Any) -> None:
    expected = [text for text, _ in here(pair, encoder.positions)]
    with proxy(encoder, engine) as (client, _):
        got = [client.post("/v1/chat/completions", json=chat(q, picture(n))) for n, q in ASKED]
    assert [text_of(one) for one in got] == expected
    assert {(one.headers["x-vlmprune-visual-tokens"], one.headers["x-vlmprune-kept-tokens"]) for one in got} == {
        ("196", "39")
    }


def test_a_stream_says_the_same(encoder: Encoder, engine: str) -> None:
    with proxy(encoder, engine) as (client, _):
        for number, question in ASKED[:3]:
            whole = text_of(client.post("/v1/chat/completions", json=chat(question, picture(number))))
            body = chat(question, picture(number), stream=True)
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                found = events(answer.iter_lines())
            assert found[-1] == "[DONE]"
            assert streamed(found).strip() == whole


def test_exits_never_touch_the_engine(any_encoder: Encoder, engine: str, pair: Any) -> None:
    expected = here(pair, "original", 0.0)
    before = seen(engine)["requests"]
    with proxy(any_encoder, engine, exit_at=0.0) as (client, _):
        for (number, question), (text, exited) in zip(ASKED[:4], expected, strict=False):
            assert exited
            got = client.post("/v1/chat/completions", json=chat(question, picture(number)))
            assert text_of(got) == text
            assert got.headers["x-vlmprune-exited"] == "1"
            options = {"stream": True, "stream_options": {"include_usage": True}}
            with client.stream("POST", "/v1/chat/completions", json=chat(question, picture(number), **options)) as part:
                found = events(part.iter_lines())
            assert (streamed(found), found[-1]) == (text, "[DONE]")
            assert found[-2]["usage"]["completion_tokens"] > 0
        assert metric(client, "vlmprune_exits_total") == 8
    assert seen(engine)["requests"] == before


def test_a_request_that_asks_for_more_than_greedy_text_does_not_exit(any_encoder: Encoder, engine: str) -> None:
    with proxy(any_encoder, engine, exit_at=0.0) as (client, _):
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0), logprobs=True))
    assert "x-vlmprune-exited" not in got.headers


@only_full
def test_a_hundred_requests_at_concurrency_sixteen(any_encoder: Encoder, engine: str, pair: Any) -> None:
    many(any_encoder, engine, pair, 100, 16)


def test_options_of_a_request(any_encoder: Encoder, engine: str) -> None:
    with proxy(any_encoder, engine) as (client, _):
        body = chat(QUESTIONS[0], picture(0), vlmprune={"keep": 7})
        assert client.post("/v1/chat/completions", json=body).headers["x-vlmprune-kept-tokens"] == "7"
        body = chat(QUESTIONS[0], picture(0), vlmprune={"exit_at": 0})
        assert client.post("/v1/chat/completions", json=body).headers["x-vlmprune-exited"] == "1"
        for bad in ({"keep": 0}, {"keep": True}, {"exit_at": 2}, {"exit_at": "no"}, {"keeps": 1}, 3):
            got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0), vlmprune=bad))
            assert (got.status_code, message_of(got)[:8]) == (400, "vlmprune")


def test_stock_vllm_takes_as_many_rows_of_every_image(pair: Any, engine: str) -> None:
    """It ends its process where they differ, so nothing of that sort passes."""
    large, small, processor = pair
    compact = Encoder(large, "sgl", guide=small, keep=KEEP, processor=processor, positions="compact")
    assert compact.rows_of_an_image == 39
    with proxy(compact, engine, embeddings=True) as (client, _):
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0), vlmprune={"keep": 0.5}))
        assert (got.status_code, "keep" in message_of(got)) == (400, True)
        part = compact.chat_part(picture(0), QUESTIONS[0], keep=7)
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], part))
        assert (got.status_code, "7 rows" in message_of(got)) == (400, True)


def test_two_images_and_requests_without_any(any_encoder: Encoder, engine: str) -> None:
    with proxy(any_encoder, engine) as (client, _):
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0), picture(1)))
        assert got.headers["x-vlmprune-visual-tokens"] == "392"
        text_of(got)
        plain = {"model": "tiny", "messages": [{"role": "user", "content": "red"}]}
        text_of(client.post("/v1/chat/completions", json=plain))
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0)) | {"model": "other"})
        assert (got.status_code, message_of(got)) == (404, "no such model")


def test_parts_that_a_client_encoded(encoder: Encoder, engine: str) -> None:
    image, question = picture(3), QUESTIONS[0]
    with proxy(encoder, engine, embeddings=True) as (client, _):
        whole = text_of(client.post("/v1/chat/completions", json=chat(question, image)))
        part = encoder.chat_part(image, question)
        assert text_of(client.post("/v1/chat/completions", json=chat(question, part))) == whole
        rows = torch.zeros(5, encoder.tower.width)
        nan = rows.clone()
        nan[2, 3] = float("nan")
        for bad, said in ((nan, "NaN"), (rows[:, 1:], "shape"), (rows[None], "shape"), (rows.int(), "floating")):
            value = part["image_embeds"]
            made = {**value, "image_embeds": encoded(bad)} if isinstance(value, dict) else encoded(bad)
            bad_part = {"type": "image_embeds", "image_embeds": made}
            got = client.post("/v1/chat/completions", json=chat(question, bad_part))
            assert (got.status_code, said in message_of(got)) == (400, True), got.text
        bomb = torch.zeros(1, 1).expand(1 << 20, encoder.tower.width)
        buffer = io.BytesIO()
        torch.save(bomb, buffer)
        packed = io.BytesIO()
        archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(encoded(rows))))
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as again:
            for name in archive.namelist():
                again.writestr(name, archive.read(name))
        forged = [base64.b64encode(made.getvalue()).decode() for made in (buffer, packed)]
        for junk in ("no base64!", base64.b64encode(b"no tensor").decode(), 5, {}, *forged):
            sent = {**part["image_embeds"], "image_embeds": junk} if isinstance(part["image_embeds"], dict) else junk
            bad_part = {"type": "image_embeds", "image_embeds": sent}
            got = client.post("/v1/chat/completions", json=chat(question, bad_part))
            assert got.status_code == 400
        assert text_of(client.post("/v1/chat/completions", json=chat(question, image))) == whole


# --- what goes wrong -----------------------------------------------------------------------------------------------


@only_full
def test_an_engine_killed_in_the_middle_of_a_stream(any_encoder: Encoder) -> None:
    with engine_process(0.05) as (address, process), proxy(any_encoder, address) as (client, state):
        body = chat(QUESTIONS[0], picture(0), stream=True, ignore_eos=True, max_tokens=200)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            first = [next(lines) for _ in range(4)]
            process.kill()
            found = events(lines)
        assert first[0].startswith("data: ")
        assert found[-1]["error"]["code"] == 502
        assert "[DONE]" not in found
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0)))
        assert (got.status_code, message_of(got)) == (503, "The engine cannot be reached; try again later.")
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 503]
        # What needs no engine still goes.
        text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0), vlmprune={"exit_at": 0.0})))
        assert metric(client, 'vlmprune_broken_streams_total{by="engine"}') == 1
        eventually(lambda: state.requests.used == 0)


def test_a_stream_is_relayed_as_it_came(any_encoder: Encoder) -> None:
    """U+2028 and U+0085 are line ends for str.splitlines and letters in JSON; [DONE] in a text ends nothing."""
    delta = {"content": "a\u2028b\x85 data: [DONE]"}
    said = json.dumps({"choices": [{"index": 0, "delta": delta}]}, ensure_ascii=False)

    class Engine(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.reply(f"data: {said}\n\n{ending}".encode(), **{"Content-Type": "text/event-stream"})

    with served(Engine) as address, proxy(any_encoder, address) as (client, _):
        for ending in ("data: [DONE]\n\n", ""):
            content = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], stream=True)).content.decode()
            assert content.startswith(f"data: {said}\n\n{ending}")
            assert ("broke off" in content) == (not ending)


@contextmanager
def failing(module: Any, fails: Any) -> Iterator[None]:
    handle = module.register_forward_hook(fails)
    try:
        yield
    finally:
        handle.remove()


def test_a_guide_that_raises_harms_nobody_else(any_encoder: Encoder, engine: str, pair: Any) -> None:
    _, small, _ = pair
    poison = Image.new("RGB", (112, 112), "white")

    def fails(module: Any, args: Any, output: Any) -> None:
        pixels = args[0]
        if any(float(one.std(dim=(1, 2)).max()) < 1e-3 for one in pixels):
            raise RuntimeError("out of memory")

    with proxy(any_encoder, engine) as (client, _), ThreadPoolExecutor(8) as pool:
        whole = [text_of(client.post("/v1/chat/completions", json=chat(q, picture(n)))) for n, q in ASKED[:6]]
        with failing(small.model.vision_tower.embeddings.patch_embedding, fails):
            bodies = [chat(q, picture(n)) for n, q in ASKED[:6]] + [chat(QUESTIONS[0], poison)] * 2
            got = list(pool.map(lambda body: client.post("/v1/chat/completions", json=body), bodies))
        assert [text_of(one) for one in got[:6]] == whole
        for one in got[6:]:
            assert (one.status_code, message_of(one)) == (
                500, "The guide failed on this request (RuntimeError); see the log."
            )  # fmt: skip


def test_a_tower_that_makes_nan_is_an_error_of_ours(any_encoder: Encoder, engine: str, pair: Any) -> None:
    large, _, _ = pair
    before = seen(engine)["requests"]
    with proxy(any_encoder, engine) as (client, _):
        with failing(large.model.multi_modal_projector, lambda module, args, out: out * float("nan")):
            got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0)))
        assert (got.status_code, "NaN" in message_of(got)) == (500, True)
        assert seen(engine)["requests"] == before
        text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0))))


@pytest.mark.parametrize("stream", either([True], [True, False]))
def test_a_client_that_hangs_up_ends_the_engines_work(any_encoder: Encoder, slow: str, stream: bool) -> None:
    before = seen(slow)
    with proxy(any_encoder, slow) as (client, state):
        body = chat(QUESTIONS[0], picture(0), stream=stream, ignore_eos=True, max_tokens=1500)
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                next(answer.iter_lines())
        else:
            content = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as connection:
                connection.sendall(head.encode() + content)
                eventually(lambda: seen(slow)["requests"] == before["requests"] + 1)
        eventually(lambda: seen(slow)["broken"] == before["broken"] + 1)
        eventually(lambda: state.requests.used == 0)
        text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0))))


def test_an_engine_that_is_silent(any_encoder: Encoder, slow: str) -> None:
    body = chat(QUESTIONS[0], picture(0), ignore_eos=True, max_tokens=20)
    with proxy(any_encoder, slow, limits=Limits(engine=0.3)) as (client, _):
        assert client.post("/v1/chat/completions", json=body).status_code == 200  # it takes a second and comes whole
    with proxy(any_encoder, slow, limits=Limits(answer=0.3)) as (client, _):
        got = client.post("/v1/chat/completions", json=body)
        assert (got.status_code, "silent for 0.3" in message_of(got)) == (504, True)


def test_more_requests_than_there_is_room_for(any_encoder: Encoder, slow: str) -> None:
    with proxy(any_encoder, slow, limits=Limits(requests=2)) as (client, state), ThreadPoolExecutor(4) as pool:
        body = chat(QUESTIONS[0], picture(0), stream=True, ignore_eos=True, max_tokens=1500)
        with ExitStack() as held:
            for _ in range(2):
                answer = held.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
                assert answer.status_code == 200
            got = list(pool.map(lambda _: client.post("/v1/chat/completions", json=body), range(4)))
        assert {(one.status_code, one.headers.get("retry-after")) for one in got} == {(503, "1")}
        eventually(lambda: state.requests.used == 0)
        text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0))))


def test_images_that_are_none_damaged_or_too_large(any_encoder: Encoder, engine: str) -> None:
    good = data_url(picture(0))
    limits = Limits(body=200_000, pixels=50_000, images=2)
    with proxy(any_encoder, engine, limits=limits) as (client, _):
        for url, said in (
            ("data:image/png;base64,AAAA", "not an image"),
            (good[: len(good) // 2], "damaged|cannot be read|not an image"),
            ("data:image/png;base64,%%%", "damaged"),
            ("data:text/html;base64,AAAA", "must be a data URL"),
            ("", "must be a data URL"),
            (data_url(Image.new("RGB", (300, 300))), "pixels"),
        ):
            got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], image_part(url)))
            assert got.status_code == 400
            assert re.search(said, message_of(got)), got.text
        got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], *[picture(0)] * 3))
        assert (got.status_code, "at most 2" in message_of(got)) == (400, True)
        for content in (b"x" * 300_000, iter([b"x" * 150_000] * 2)):  # with a content length, and in chunks without
            got = client.post("/v1/chat/completions", content=content)
            assert (got.status_code, "bytes" in message_of(got)) == (413, True)
        text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0))))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b"[" * 100_000, b'{"messages": []}', b'{"messages": [3]}', b'{"messages": [{"role": 1}]}',
        b'{"messages": [{"role": "user", "content": 4}]}', b'{"messages": [{"role": "user", "content": [4]}]}',
        json.dumps(chat("x", {"type": "video_url", "video_url": {"url": "http://127.0.0.1/v"}})).encode(),
        json.dumps(chat("x", {"image_url": "http://127.0.0.1/v"})).encode(),
        json.dumps(chat("x", {"type": "image_url", "image_url": "127.0.0.1/v"})).encode(),
        json.dumps(chat("x", max_tokens=0)).encode(), json.dumps(chat("x", max_tokens=10**9)).encode(),
    ],
)  # fmt: skip
def test_malformed_requests(any_encoder: Encoder, engine: str, body: bytes) -> None:
    before = seen(engine)["requests"]
    with proxy(any_encoder, engine) as (client, _):
        assert client.post("/v1/chat/completions", content=body).status_code == 400
    assert seen(engine)["requests"] == before


@pytest.fixture
def site() -> Iterator[tuple[str, list[str]]]:
    """A site with the picture 0 and an address that leads there, and the paths that were asked of it."""
    hits: list[str] = []

    class Site(Handler):
        def do_GET(self) -> None:
            hits.append(self.path)
            if self.path == "/moved":
                self.reply(status=302, Location="/picture.png")
            else:
                self.reply(base64.b64decode(data_url(picture(0)).partition(",")[2]))

    with served(Site) as address:
        yield address, hits


def test_nothing_is_fetched_unless_allowed(any_encoder: Encoder, engine: str, site: Any, tmp_path: Any) -> None:
    address, hits = site
    picture(0).save(tmp_path / "picture.png")
    before = seen(engine)["requests"]
    for allowed in (False, True):
        with proxy(any_encoder, engine, image_urls=allowed) as (client, _):
            for url in (f"file://{tmp_path}/picture.png", str(tmp_path / "picture.png"), "ftp://127.0.0.1/picture.png"):
                assert client.post("/v1/chat/completions", json=chat(QUESTIONS[0], image_part(url))).status_code == 400
            got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], image_part(f"{address}/picture.png")))
            if not allowed:
                assert (got.status_code, hits, seen(engine)["requests"]) == (403, [], before)
                continue
            assert text_of(got) == text_of(client.post("/v1/chat/completions", json=chat(QUESTIONS[0], picture(0))))
            got = client.post("/v1/chat/completions", json=chat(QUESTIONS[0], image_part(f"{address}/moved")))
            assert (got.status_code, hits) == (400, ["/picture.png", "/moved"])


def refuses(address: str) -> bool:
    try:
        httpx.get(f"{address}/health", timeout=60, trust_env=False)
    except httpx.TransportError:
        return True
    return False


# --- the command ---------------------------------------------------------------------------------------------------


@only_full
def test_the_command_finishes_what_is_open_before_it_ends(slow: str) -> None:
    with Command(slow) as server, httpx.Client(base_url=server.address, timeout=600, trust_env=False) as client:
        body = chat(QUESTIONS[0], picture(0), stream=True, ignore_eos=True, max_tokens=40)
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: refuses(server.address))  # nobody new is let in
            assert events(lines)[-1] == "[DONE]"
        assert server.process.wait(timeout=300) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine", "127.0.0.1:8000"], "must be a web address"),
        (["--engine", "http://127.0.0.1:1", "--port", "0"], "'--port': must be"),
        (["--engine", "http://127.0.0.1:1", "--keep", "0"], "out of range"),
        (["--engine", "http://127.0.0.1:1", "--method", "fastv"], "inside the language model"),
        (["--engine", "http://127.0.0.1:1", "--method", "uniform", "--exit-at", "0.5"], "takes no --exit-at"),
        (["--engine", "http://127.0.0.1:1", "--positions", "none"], "unknown"),
        (
            ["--engine", "http://127.0.0.1:1", "--max-megapixels", "0"],
            "'--max-megapixels': must be a number above 0, got '0'",
        ),
        (
            ["--engine", "http://127.0.0.1:1", "--max-open-megabytes", "nan"],
            "'--max-open-megabytes': must be a number above 0, got 'nan'",
        ),
        (["--engine", "http://127.0.0.1:1", "--max-request-megapixels", "10"], "request_pixels=10,000,000 is below"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["serve-proxy", *arguments])
    lines = result.stderr.strip().splitlines()
    assert (result.exit_code, len(lines)) == (2, 1), lines
    assert said in lines[0]
