"""A demo that runs in a process of its own, and a Chromium to look at it.

Where Gradio, Playwright or a Chromium is missing these tests skip and say so; with VLMPRUNE_REQUIRE_BROWSER=1 (as in
.ci/run) that is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PATIENCE = 600  # seconds for what is sure to come: a busy machine is slow, and only a hang may fail
REQUIRED = os.environ.get("VLMPRUNE_REQUIRE_BROWSER") == "1"
ARTEFACTS = Path(os.environ.get("VLMPRUNE_ARTEFACTS", ROOT / "runs" / "demo"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def missing(reason: str) -> None:
    if REQUIRED:
        pytest.fail(f"{reason}, and VLMPRUNE_REQUIRE_BROWSER=1 says that it must be there")
    pytest.skip(reason)


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        missing(f"{module} is not installed (pip install 'vlmprune[test]')")


@pytest.fixture(scope="session")
def chromium() -> str:
    need("playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("VLMPRUNE_CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        missing("there is no Chromium (on Debian: apt-get install chromium; elsewhere set VLMPRUNE_CHROMIUM)")
    return str(found)


@dataclass
class Served:
    """A running ``vlmprune demo``."""

    url: str
    process: subprocess.Popen[str]
    seconds: float  # until it said that it is there
    log: Path

    def stop(self) -> int:
        """Ctrl-C, and the exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=PATIENCE)
        finally:
            self.process.kill()


def start(folder: Path, *arguments: str) -> Served:
    """Start the demo as a user does, its uploads below `folder`; wait for the line with its address."""
    log = folder / "demo.log"
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    begin = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmprune", "demo", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            text=True,
            start_new_session=True,
        )
    while process.poll() is None and time.monotonic() < begin + PATIENCE:
        if said := re.search(r"the demo is at (http://\S+)", log.read_text()):
            return Served(said[1], process, time.monotonic() - begin, log)
        time.sleep(0.05)
    status = process.poll()
    process.kill()
    raise AssertionError(f"the demo did not start (status {status}): {log.read_text()}")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    need("gradio")
    served = start(tmp_path_factory.mktemp("served"))
    yield served
    assert served.stop() == 0, served.log.read_text()
    # Gradio logs every attempt on a file outside; there is nothing else to log.
    said = served.log.read_text()
    assert said.count("Traceback") == said.count("gradio.exceptions.InvalidPathError"), said


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """One for a module; each test has its own visitor in it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, demo: Served) -> Iterator[Any]:
    """A fresh visitor on the page; whatever the page's scripts throw fails the test."""
    with opened(browser, demo.url, viewport={"width": 1100, "height": 900}) as page:
        yield page


@contextmanager
def opened(browser: Any, url: str, **look: Any) -> Iterator[Any]:
    """The page in a context of its own, once its example is drawn; what its scripts throw is raised at the end."""
    context = browser.new_context(**look)
    try:
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        thrown: list[str] = []
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(url, timeout=PATIENCE * 1000)
        page.wait_for_selector("#ask-go")
        page.wait_for_selector("#ask-picture .vp-live[data-drawn]:not([data-drawn=soon])")
        yield page
    finally:
        context.close()
    assert not thrown, thrown


@pytest.fixture
def visitor(page: Any) -> Any:
    from .visitor import Visitor

    return Visitor(page)


@pytest.fixture(scope="session")
def engine() -> Any:
    need("gradio")
    from vlmprune.apps.demo.engine import Engine
    from vlmprune.harness.models import load_models

    return Engine(load_models(None, None, trust_remote_code=False), runs=1)  # no test reads times
