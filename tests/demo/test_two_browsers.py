"""Two browsers at once, each with settings of its own: every answer must be the one to its question and settings."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from .conftest import FLAGS, Served
from .support import SETTINGS, Truth, names, questions, truth
from .visitor import Visitor

SECONDS = float(os.environ.get("VLMPRUNE_SOAK_SECONDS", "10"))  # .ci/run: 60


def test_two_browsers_never_see_each_other(chromium: str, demo: Served, engine: Any) -> None:
    plans = [
        [("fastv", 0), ("exit", 1), ("uniform", 2), ("fastv", 3)],
        [("sgl", 2), ("uniform", 0), ("sgl", 3), ("exit", 1)],
    ]
    expected: dict[tuple[str, int], Truth] = {
        job: truth(engine.models, *questions()[job[1]], SETTINGS[job[0]]) for plan in plans for job in plan
    }
    start = threading.Barrier(2)
    answers, wrong = [0, 0], []

    def person(number: int) -> None:
        from playwright.sync_api import sync_playwright

        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page()
                page.set_default_timeout(60_000)
                page.goto(demo.url)
                page.wait_for_selector("#ask-go")
                visitor = Visitor(page)
                start.wait(timeout=120)
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    setting, i = plans[number][answers[number] % len(plans[number])]
                    visitor.example(names()[i])
                    visitor.set_up(SETTINGS[setting])
                    visitor.ask(questions()[i][1])
                    bad = visitor.differs(expected[setting, i], SETTINGS[setting])
                    wrong.extend(f"{setting} {i}: {one}" for one in bad)
                    answers[number] += 1
                browser.close()
        except Exception as error:  # a thread's exception fails no test by itself
            wrong.append(f"browser {number}: {error!r}")
            start.abort()

    people = [threading.Thread(target=person, args=(number,)) for number in range(2)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    print(f"answers in {SECONDS:g} s: {answers}")
    assert not wrong, wrong
    assert min(answers) >= max(1, SECONDS / 20)
