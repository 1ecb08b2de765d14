"""The README's images of the demo: every tab with its first example, as a browser shows it.

Wants the extra `test` and a Chromium (`VLMPRUNE_CHROMIUM` names one that is not on the path).

    python -m demos.screenshots --out demos/screenshots
"""

from __future__ import annotations

import argparse
import os
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from vlmprune.apps.demo.app import served
from vlmprune.apps.demo.engine import Engine
from vlmprune.harness.models import load_models

# Tab -> the button that starts it, and what stands there when it is done.
TABS = {
    "ask": ("#ask-go", "#ask-images img"),
    "compare": ("#compare-go", "#compare-images img"),
    "sinks": ("#sinks-go", "#sinks-heat img"),
    "caption": ("#caption-go", "#caption-tree li"),
    "plan": ("#plan-go", "#plan-made .vp-bars"),
}
SHOWN = (640, 990)  # pixels; what is longer ends there
COLOURS = 256  # with 64 the red things of the example turned brown
PATIENCE = 300_000  # milliseconds, on a busy machine


def taken(page: Any, tab: str) -> Image.Image:
    """The whole page of one tab, when it has done its work."""
    go, done = TABS[tab]
    page.get_by_role("tab", name=tab.title(), exact=True).click()
    page.click(go)
    page.wait_for_selector(done)
    page.wait_for_function("() => !document.querySelector('[aria-busy=true]')")
    page.wait_for_timeout(1000)  # the last fade
    return Image.open(BytesIO(page.screenshot(full_page=True)))


def small(image: Image.Image) -> Image.Image:
    """As wide as the README shows it, in few colours."""
    width, longest = SHOWN
    image = image.convert("RGB")
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    return image.crop((0, 0, width, min(longest, image.height))).quantize(COLOURS)


def main() -> None:
    """Serve, look, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demos/screenshots"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("VLMPRUNE_CHROMIUM") or shutil.which("chromium")
    engine = Engine(load_models(None, None, trust_remote_code=False))
    engine.warm_up()  # or the first times on the page are those of a cold start
    with served(engine) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": 1100, "height": 900}, color_scheme="light").new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        for tab in TABS:
            small(taken(page, tab)).save(args.out / f"{tab}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
