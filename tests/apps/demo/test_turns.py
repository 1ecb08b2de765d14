"""The queue before the models."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from .conftest import PATIENCE, need
from .support import SETTINGS, questions


@pytest.fixture(autouse=True)
def _gradio() -> None:
    need("gradio")


def test_turns_come_in_order_and_everyone_hears_their_place() -> None:
    from vlmprune.apps.demo.turns import TurnLock

    turns, done, heard = TurnLock(), [], {i: [] for i in range(4)}  # type: ignore[var-annotated]
    arrived = [threading.Event() for _ in range(4)]

    def visitor(i: int) -> None:
        def say(before: int) -> None:
            heard[i].append(before)
            arrived[i].set()

        with turns.wait(say):
            done.append(i)

    threads = [threading.Thread(target=visitor, args=(i,)) for i in range(4)]
    with turns.wait():
        for i, thread in enumerate(threads):
            thread.start()
            assert arrived[i].wait(PATIENCE)
        assert done == []
    for thread in threads:
        thread.join(PATIENCE)
    assert done == [0, 1, 2, 3]
    assert [places[0] for places in heard.values()] == [1, 2, 3, 4]
    assert all(places == sorted(places, reverse=True) for places in heard.values())


def test_who_leaves_the_queue_lets_others_through() -> None:
    from vlmprune.apps.demo.turns import TurnLock

    turns = TurnLock()

    class Gone(Exception):
        pass

    def leave(before: int) -> None:
        raise Gone

    with turns.wait(), pytest.raises(Gone), turns.wait(leave):
        raise AssertionError("it was not their turn")
    with turns.wait(leave):  # nobody is before them
        pass


def test_the_place_is_said_in_words() -> None:
    from vlmprune.apps.demo.turns import in_words

    assert in_words(1) == "One question is being answered; yours is next."
    assert in_words(2) == "Yours is second in the queue: 2 questions come before it."
    assert in_words(40) == "Yours is number 40 in the queue: 40 questions come before it."


def test_a_visitor_who_waits_is_told(engine: Any) -> None:
    news: list[Any] = []
    with engine.alone.wait():
        listener = threading.Thread(target=lambda: news.extend(engine.ask(*questions()[0], *SETTINGS["fastv"])))
        listener.start()
        end = time.monotonic() + PATIENCE
        while not news and time.monotonic() < end:
            time.sleep(0.01)
    listener.join(PATIENCE)
    assert news[0] == "One question is being answered; yours is next."
    assert news[-1].unpruned.text
