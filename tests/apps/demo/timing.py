"""`python -m tests.apps.demo.timing`: how long the demo takes to its first answer, to later ones and to its slider.

No test, since whatever else runs on the machine makes it slower; the exit status is 1 where it took longer.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from .conftest import FLAGS, opened, start
from .support import SETTINGS, questions
from .visitor import Visitor

COLD, WARM, REDRAWN = 12, 2, 0.1  # seconds on two cores
TRIES = 3
# Seconds from moving the slider to the end of the frame that shows its patches.
SLIDE = """keep => new Promise(done => {
  const slider = document.querySelector("#ask-keep input[type=range]"), start = performance.now();
  slider.value = keep;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)));
})"""


def cold_start(browser: Any, folder: Path) -> tuple[float, float, float]:
    """Seconds from the command to the first answer on the page, then of a question and of a move of the slider."""
    began = time.monotonic()
    served = start(folder)
    try:
        with opened(browser, served.url) as page:
            first = time.monotonic() - began
            slides = [page.evaluate(SLIDE, step / 100) for step in range(5, 100, 5)]
            visitor = Visitor(page)
            visitor.set_up(SETTINGS["fastv"])
            took = []
            for _, question in questions()[1:]:
                asked = time.monotonic()
                visitor.ask(question)
                took.append(time.monotonic() - asked)
    finally:
        served.stop()
    return first, median(took), max(slides)


def main() -> int:
    from playwright.sync_api import sync_playwright

    tries = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(TRIES):
            with tempfile.TemporaryDirectory() as folder:
                tries.append(cold_start(browser, Path(folder)))
            first, answer, slide = tries[-1]
            print(f"first answer {first:.1f} s, a question {answer:.2f} s (median), slider {1000 * slide:.0f} ms")
            best = [min(column) for column in zip(*tries, strict=True)]
            if all(took <= most for took, most in zip(best, (COLD, WARM, REDRAWN), strict=True)):
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
