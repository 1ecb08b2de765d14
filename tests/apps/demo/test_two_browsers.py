"""Two browsers at once, each with settings of its own: every answer must be the one to its question and settings."""

from __future__ import annotations

import threading
from typing import Any

from tests.support.grid import only_by_hand

from .conftest import FLAGS, PATIENCE, Served, opened
from .support import SETTINGS, Truth, questions, truth
from .visitor import Visitor

ROUNDS = range(8)  # of four questions for each browser


@only_by_hand
def test_two_browsers_never_see_each_other(chromium: str, demo: Served, engine: Any) -> None:
    plans = [
        [("fastv", 0), ("exit", 1), ("uniform", 2), ("fastv", 0)],
        [("sgl", 2), ("uniform", 0), ("sgl", 0), ("exit", 1)],
    ]
    expected: dict[tuple[str, int], Truth] = {
        job: truth(engine.models, *questions()[job[1]], SETTINGS[job[0]]) for plan in plans for job in plan
    }
    start = threading.Barrier(2)
    wrong: list[str] = []

    def person(number: int) -> None:
        from playwright.sync_api import sync_playwright

        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                with opened(browser, demo.url) as page:
                    visitor = Visitor(page)
                    start.wait(timeout=PATIENCE)
                    for setting, i in [job for _ in ROUNDS for job in plans[number]]:
                        visitor.example(i)
                        visitor.set_up(SETTINGS[setting])
                        visitor.ask(questions()[i][1])
                        bad = visitor.differs(expected[setting, i], SETTINGS[setting])
                        wrong.extend(f"{setting} {i}: {one}" for one in bad)
                browser.close()
        except Exception as error:  # a thread's exception fails no test by itself
            wrong.append(f"browser {number}: {error!r}")
            start.abort()

    people = [threading.Thread(target=person, args=(number,)) for number in range(2)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert not wrong, wrong
