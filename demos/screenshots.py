"""The documents' images of the demo: every tab with what it opens with, and Ask on a phone in the dark.

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

# Tab -> what stands there when it has opened with its example.
TABS = {
    "ask": "#ask-picture .vp-live[data-drawn='0.25']",
    "compare": "#compare-images img",
    "sinks": "#sinks-heat img",
    "caption": "#caption-tree li",
    "plan": "#plan-made .vp-bars",
}
SHOWN = (640, 990)  # pixels; what is longer ends there
PHONE = (390, 1160)
COLOURS = 256  # with 64 the red things of the example turned brown
PATIENCE = 300_000  # milliseconds, on a busy machine


def opened(browser: Any, url: str, size: tuple[int, int], scheme: str) -> Any:
    """The page in a browser of this size and colours, with its first answer."""
    width, height = size
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    page.wait_for_selector(TABS["ask"])
    return page


def taken(page: Any, tab: str) -> Image.Image:
    """The whole page of one tab, with what it opens with."""
    page.get_by_role("tab", name=tab.title(), exact=True).click()
    page.wait_for_selector(TABS[tab])
    # No picture of a fade.
    page.wait_for_function("() => document.getAnimations().every(one => one.playState !== 'running')")
    return Image.open(BytesIO(page.screenshot(full_page=True)))


def small(image: Image.Image, width: int, longest: int) -> Image.Image:
    """As wide as the documents show it, in few colours."""
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
        page = opened(browser, url, (1100, 900), "light")
        for tab in TABS:
            small(taken(page, tab), *SHOWN).save(args.out / f"{tab}.png", optimize=True)
        page = opened(browser, url, PHONE, "dark")
        small(taken(page, "ask"), *PHONE).save(args.out / "phone.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
