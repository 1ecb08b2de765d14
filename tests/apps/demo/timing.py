"""`python -m tests.apps.demo.timing`: how long the demo takes to its first answer and to later ones.

No test, since whatever else runs on the machine makes it slower; the exit status is 1 where it took longer.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .conftest import FLAGS, start
from .support import SETTINGS, questions
from .visitor import Visitor

COLD, WARM = 15, 2  # seconds on two cores
TRIES = 3


def cold_start(browser: Any, folder: Path) -> tuple[float, list[float]]:
    """Seconds from the command to the first answer on the page, and from click to last picture of later ones."""
    began = time.monotonic()
    served = start(folder)
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(served.url)
        page.wait_for_selector("#ask-go")
        visitor = Visitor(page)
        visitor.ask(questions()[0][1])
        first = time.monotonic() - began
        visitor.set_up(SETTINGS["fastv"])
        took = []
        for _, question in questions()[1:]:
            asked = time.monotonic()
            visitor.ask(question)
            took.append(time.monotonic() - asked)
    finally:
        context.close()
        served.stop()
    return first, took


def main() -> int:
    from playwright.sync_api import sync_playwright

    first, answers = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(TRIES):
            with tempfile.TemporaryDirectory() as folder:
                seconds, took = cold_start(browser, Path(folder))
            first.append(seconds)
            answers.append(sorted(took)[len(took) // 2])
            print(f"cold start to first answer {seconds:.1f} s, then a median of {answers[-1]:.2f} s an answer")
            if min(first) <= COLD and min(answers) <= WARM:
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
