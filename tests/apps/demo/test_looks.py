"""The page as it opens, on screens of two widths and in two colours, with a keyboard and to a screen reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.grid import only_by_hand

from .axe import violations
from .conftest import Served, opened
from .support import SETTINGS, questions
from .test_world import photographs
from .visitor import Visitor, keep_picture


@only_by_hand
def test_the_thumbnails_are_answered_already(visitor: Visitor) -> None:
    page = visitor.page
    for number, says in (
        (2, "Pruning makes the answer wrong: '6' instead of '5'"),
        (1, "Same answer. 95 %"),
        (0, "Same answer. 75 %"),
    ):
        visitor.example(number)
        assert says in page.locator("#ask-result .vp-result").inner_text()
        page.wait_for_selector(f"#ask-picture .vp-live[data-drawn='{(0.25, 0.05, 0.25)[number]}']")


@only_by_hand
def test_a_photograph_gets_a_banner(visitor: Visitor, tmp_path: Path) -> None:
    next(photographs()).save(tmp_path / "photograph.png")
    visitor.upload(tmp_path / "photograph.png")
    visitor.ask(questions()[0][1])
    banner = visitor.page.locator("#ask-outside").inner_text()
    assert "photograph" in banner
    assert "vlmprune demo --model ORG/NAME" in banner
    keep_picture(visitor.page, "photograph")
    visitor.example(0)
    visitor.page.wait_for_selector("#ask-outside [role=alert]", state="detached")


@only_by_hand
def test_copy_as_python(visitor: Visitor, demo: Served) -> None:
    page = visitor.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=demo.url.rstrip("/"))
    visitor.details()
    page.click("#ask-python button")
    page.wait_for_selector('#ask-python button:has-text("Copied")')
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == page.locator("#ask-python pre").text_content()
    assert "vlmprune.wrap(model, 'visionzip', processor=processor, keep=0.25)" in copied


@only_by_hand
def test_it_is_used_with_the_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.page
    page.keyboard.press("Tab")
    seen = []
    for _ in range(60):
        seen.append(page.evaluate("() => document.activeElement.closest('[id^=ask-]')?.id"))
        if seen[-1] == "ask-go":
            break
        page.keyboard.press("Tab")
    for box in ("ask-thumb-0", "ask-thumb-2", "ask-own", "ask-keep", "ask-question", "ask-go"):
        assert box in seen, seen
    before = visitor.answer()
    page.keyboard.press("Enter")
    visitor.until_answered(before)
    page.locator("#ask-question textarea").focus()
    page.keyboard.press("End")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    page.locator("#ask-details button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector('#ask-python pre:has-text("star?!")')


@only_by_hand
def test_every_picture_has_words_and_every_input_a_name(visitor: Visitor) -> None:
    visitor.ask(questions()[0][1])
    page = visitor.page
    images = page.locator("[id^=ask-] img:visible").all()
    named = [image.get_attribute("alt") or image.evaluate("i => i.closest('button')?.innerText") for image in images]
    assert len(images) == 6, "three thumbnails, the image, the layer and its heat map"
    assert all((name or "").strip() for name in named), named
    assert page.locator("html").get_attribute("lang") == "en"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button')].filter(e => e.offsetParent
            && !e.labels?.length && !e.ariaLabel && !e.title && !e.innerText?.trim()
            && !e.getAttribute('aria-labelledby') && !e.closest('label')).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []


@only_by_hand
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_state_on_every_screen(browser: Any, demo: Served, tmp_path: Path, width: int, scheme: str) -> None:
    """Nothing sticks out and axe-core finds nothing; on a wide screen the answers are seen without scrolling."""
    photograph, words = tmp_path / "photograph.png", tmp_path / "words.png"
    next(photographs()).save(photograph)
    words.write_text("no picture at all")
    with opened(browser, demo.url, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        visitor = Visitor(page)
        found = {}

        def look(state: str) -> None:
            keep_picture(page, f"{state}-{width}-{scheme}")
            found[state] = violations(page)
            if page.evaluate("() => document.documentElement.scrollWidth") > width:
                found[state].append("it sticks out")

        bottom = page.evaluate("() => document.querySelector('#ask-result .vp-result').getBoundingClientRect().bottom")
        assert width < 1000 or bottom <= 900
        assert page.evaluate("() => document.body.classList.contains('dark')") == (scheme == "dark")
        look("opening")
        visitor.example(2)
        look("failure")
        visitor.set_up(SETTINGS["sgl"])
        visitor.ask("What is the zebra wearing?")
        look("details")
        visitor.clear()
        look("empty")
        visitor.hand_in(words)
        page.wait_for_selector("#ask-alert [role=alert]")
        look("refused")
        visitor.upload(photograph)
        visitor.ask("What is the woman wearing?")
        look("photograph")
        for tab in ("Compare", "Sinks", "Caption", "Plan"):
            visitor.tab(tab)
            look(tab.lower())
    assert {state: wrong for state, wrong in found.items() if wrong} == {}


@only_by_hand
def test_who_waits_reads_their_place(browser: Any, engine: Any) -> None:
    """The server in this process, so that the test itself can be the visitor before."""
    from vlmprune.apps.demo.app import served

    with served(engine) as (url, _), opened(browser, url) as page:
        visitor = Visitor(page)
        before = visitor.answer()
        with engine.alone.wait():
            page.click("#ask-go")
            # Next, or after the examples that the server computes.
            page.wait_for_selector('#ask-result .vp-note:has-text("yours is")')
            keep_picture(page, "waiting")
            assert violations(page) == []
        visitor.until_answered(before)


@only_by_hand
def test_the_pictures_are_the_drawings(visitor: Visitor) -> None:
    import base64
    import io

    visitor.ask(questions()[0][1])
    source = visitor.page.locator("#ask-images img").first.get_attribute("src")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as drawn:
        assert drawn.size == (420, 420)
