"""A conversation keeps what was chosen of its images, so that the engine finds what it computed in earlier turns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from eval.serving.servers import serving
from tests.serving.support import KEEP, QUESTIONS, Handler, data_url, eventually, image_part, proxy, served
from tests.serving.tiny_engine import create
from tests.support.engines import picture
from tests.support.grid import only_full
from tests.support.tiny_families import build, make_inputs
from vlmprune.inputs.chat import build_messages
from vlmprune.serving import Encoder
from vlmprune.serving.chat import Limits
from vlmprune.serving.memory import Memory
from vlmprune.serving.tower import SERVED

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guided(pair: Any) -> Encoder:
    large, small, processor = pair
    return Encoder(large, "sgl", guide=small, keep=KEEP, processor=processor)


@pytest.fixture
def engine() -> Iterator[tuple[str, list[Any]]]:
    """What every request brought of images, in the order of its messages."""
    got: list[Any] = []

    class Engine(Handler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            parts = [part for one in body["messages"] if isinstance(one["content"], list) for part in one["content"]]
            got.append([part["image_embeds"] for part in parts if part["type"] == "image_embeds"])
            self.reply(b'{"choices": []}')

    with served(Engine) as address:
        yield address, got


@contextmanager
def counted(encoder: Encoder) -> Iterator[Counter[str]]:
    """How often guide and tower are asked, and for how many images."""
    calls: Counter[str] = Counter()
    rows, rank = encoder.tower._rows, encoder.rank_inputs

    def seen(given: Any) -> Any:
        calls["images"] += len(given["pixel_values"])
        return rows(given)

    def ranked(inputs: Any, **more: Any) -> Any:
        calls["guide"] += len(inputs["input_ids"])
        return rank(inputs, **more)

    encoder.tower._rows, encoder.rank_inputs = seen, ranked  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        del encoder.tower._rows, encoder.rank_inputs


def turn(question: str, *numbers: int) -> dict[str, Any]:
    images = [image_part(data_url(picture(number))) for number in numbers]
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


SAID = {"role": "assistant", "content": "red"}


def asked(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": list(messages), "temperature": 0, **more}


def test_later_turns_send_the_same_embeddings(guided: Encoder, engine: Any) -> None:
    """Also where a later turn brings an image of its own, asks for an answer of another length, or has none."""
    address, got = engine
    one, two, three = turn(QUESTIONS[0], 0), turn(QUESTIONS[1], 1), turn(QUESTIONS[2])
    talks = [[one], [one, SAID, three], [one, SAID, two], [one, SAID, two, SAID, three], [one, SAID, two, SAID, one]]
    with proxy(guided, address) as (client, state), counted(guided) as calls:
        for number, talk in enumerate(talks):
            answer = client.post(CHAT, json=asked(*talk, max_tokens=10 + 20 * number))
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-vlmprune-kept-tokens"] == str(39 * len(got[-1]))
        assert calls == {"images": 2, "guide": 3}
        assert b"vlmprune_kept_choices_total 6.0" in client.get("/metrics").content
        eventually(lambda: state.pixels.used == 0)
    (a,), (b,), (c, d), (e, f), (g, h, i) = got
    assert a == b == c == e == g
    assert d == f == h
    assert i != a  # the image again, in a longer conversation


@only_full
def test_what_was_forgotten_is_chosen_again_from_the_same_turn(guided: Encoder, engine: Any) -> None:
    """Another process, or one without memory, sends the same numbers up to the order in which they are added."""
    address, got = engine
    talk = [turn(QUESTIONS[0], 0), SAID, turn(QUESTIONS[1])]
    for limits, talks in ((Limits(), [talk[:1], talk]), (Limits(), [talk]), (Limits(cache=0), [talk])):
        with proxy(guided, address, limits=limits) as (client, state):
            for one in talks:
                assert client.post(CHAT, json=asked(*one)).status_code == 200
            assert (state.pipeline.memory.used == 0) == (limits.cache == 0)
    assert [one[0]["kept"] for one in got] == [got[0][0]["kept"]] * 4


@only_full
def test_every_turn_chooses_where_that_is_wanted(guided: Encoder, engine: Any) -> None:
    address, _ = engine
    talk = [turn(QUESTIONS[0], 0), SAID, turn(QUESTIONS[1])]
    with proxy(guided, address, keep_choices=False) as (client, _), counted(guided) as calls:
        for one in (talk[:1], talk):
            assert client.post(CHAT, json=asked(*one)).status_code == 200
    assert calls == {"images": 1, "guide": 2}


@only_full
def test_other_budgets_images_and_words_are_other_conversations(guided: Encoder, engine: Any) -> None:
    address, _ = engine
    first = [turn(QUESTIONS[0], 0), SAID, turn(QUESTIONS[1])]
    others = [
        asked(turn(QUESTIONS[0], 1), *first[1:]), asked(turn(QUESTIONS[1], 0), *first[1:]),
        asked({"role": "system", "content": "s"}, *first), asked(*first, vlmprune={"keep": 7}),
        asked(*first, vlmprune={"keep": 1}), asked(*first, vlmprune={"keep": 1.0}),
    ]  # fmt: skip
    with proxy(guided, address) as (client, _), counted(guided) as calls:
        assert client.post(CHAT, json=asked(*first)).status_code == 200
        for body in others:
            assert client.post(CHAT, json=body).status_code == 200
        assert calls == {"images": 2, "guide": 7}
        assert client.post(CHAT, json=asked(*first[:1], {**SAID, "content": "other"}, first[2])).status_code == 200
        assert calls == {"images": 2, "guide": 7}


@only_full
def test_exits_of_later_turns_need_the_guide_and_no_tower(guided: Encoder, pair: Any) -> None:
    talk = [turn(QUESTIONS[0], 0), SAID, turn(QUESTIONS[1])]
    with serving(create()) as address, proxy(guided, address) as (client, _), counted(guided) as calls:
        for one in (talk[:1], talk):
            got = client.post(CHAT, json=asked(*one, vlmprune={"exit_at": 0.0}))
            assert got.headers["x-vlmprune-exited"] == "1"
        assert calls == {"guide": 2}
        assert client.post(CHAT, json=asked(*talk, vlmprune={"exit_at": 1.0})).status_code == 200
        assert calls == {"guide": 4, "images": 1}  # of the whole for the exit, of the first turn for the choice


@only_full
def test_the_engine_finds_what_it_computed(guided: Encoder) -> None:
    """Three conversations of three turns: all of the prompt's full blocks but those of the newest turn."""
    with serving(create()) as address, proxy(guided, address) as (client, _):
        for number in range(3):
            talk: list[Any] = []
            before = 0
            for question in QUESTIONS:
                talk.append(turn(question, *([number] if not talk else [])))
                usage = client.post(CHAT, json=asked(*talk, max_tokens=2)).json()["usage"]
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                assert cached >= before // 16 * 16 - 16
                before = usage["prompt_tokens"]
                talk.append(SAID)
            assert cached > 0


@only_full
def test_a_conversation_that_grew_too_long_is_refused(guided: Encoder, engine: Any) -> None:
    """Where all images are remembered, nothing else counts the tokens of the unpruned prompt."""
    address, _ = engine
    long = turn("red " * guided.tower.longest)
    with proxy(guided, address) as (client, _):
        assert client.post(CHAT, json=asked(turn(QUESTIONS[0], 0))).status_code == 200
        got = client.post(CHAT, json=asked(turn(QUESTIONS[0], 0), SAID, long))
    assert (got.status_code, "tokens before pruning" in got.text) == (400, True)


# --- the tower's rows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(SERVED))
def test_rows_that_are_remembered_are_those_that_were_computed(family: str) -> None:
    model = build(family)
    inputs = make_inputs(model, images=(1, 2, 1))
    encoder = Encoder(model, "uniform", processor=object(), keep=0.4)
    alone, memory = encoder.encode_inputs(inputs), Memory(2**20)
    with counted(encoder) as calls:
        for _ in range(2):
            for one, other in zip(encoder.encode_inputs(inputs, memory=memory), alone, strict=True):
                assert one.token_ids == other.token_ids
                for ours, theirs in zip(one.images, other.images, strict=True):
                    torch.testing.assert_close(ours.rows, theirs.rows, rtol=0, atol=1e-5)
    assert calls["images"] == len(inputs["pixel_values"])  # once
    assert 0 < memory.used <= memory.most


def test_a_method_that_reads_the_tower_runs_it(pair: Any) -> None:
    large, _, processor = pair
    encoder, memory = Encoder(large, "visionzip", processor=processor, keep=0.2), Memory(2**20)
    inputs = encoder.inputs([build_messages(picture(0), QUESTIONS[0])])
    both = [encoder.encode_inputs(inputs, memory=memory)[0].images[0] for _ in range(2)]
    assert torch.equal(both[0].kept, both[1].kept)
    assert memory.used == 0


def test_memory_is_bounded_and_for_many_threads() -> None:
    memory = Memory(100)

    def work(seed: int) -> None:
        for step in range(300):
            key = (seed * 7 + step) % 40
            found = memory.get(key)
            assert found in (None, key)
            memory.put(key, key, key)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert memory.used == sum(size for _, size in memory._values.values()) <= 100
    memory = Memory(10)
    for key in "abc":
        memory.put(key, key, 4)
        memory.get("a")
    assert [memory.get(key) for key in "abc"] == ["a", None, "c"]
    memory.put("a", "larger", 11)
    assert (memory.get("a"), memory.used) == (None, 4)
