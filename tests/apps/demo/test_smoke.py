"""What CI looks at in a real browser: a minute of one worker in all. The rest is in `python -m tests.full browser`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.grid import only_full

from .axe import violations
from .support import SETTINGS, questions, truth
from .visitor import Visitor, keep_picture

EVIL = "<img src=x onerror=window.hit=1>"

# The dark fraction of the canvas over the image.
DARK = """() => {
  const canvas = document.querySelector("#ask-picture canvas");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let dark = 0;
  for (let i = 3; i < pixels.length; i += 4) dark += pixels[i] > 0;
  return dark / (canvas.width * canvas.height);
}"""


@only_full
def test_it_opens_with_an_answer_and_the_slider_drops_patches(visitor: Visitor) -> None:
    page = visitor.page
    page.wait_for_selector("#ask-picture .vp-live[data-drawn='0.25']")
    assert "Same answer. 75 % fewer tokens, 74 % fewer FLOPs" in page.locator("#ask-result").inner_text()
    assert page.locator("#ask-answers .vp-answer").all_inner_texts() == ["black", "black"]
    assert page.locator("#ask-result .prose").get_attribute("aria-live") == "polite"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    before = page.evaluate(DARK)
    page.locator("#ask-keep input[type=range]").focus()
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#ask-picture .vp-live[data-drawn='0.1']")
    assert "20 of 196 visual tokens stay" in page.locator("#ask-picture figcaption").inner_text()
    assert page.locator("#ask-keep input[type=range]").get_attribute("aria-valuetext").startswith("10 %, 20 of 196")
    after = page.evaluate(DARK)
    assert (round(196 * before), round(196 * after)) == (147, 176)
    assert asked == [], "no request, so no model call"
    visitor.number("ask-keep", 1)
    page.wait_for_selector("#ask-picture .vp-live[data-drawn='1']")
    assert page.evaluate(DARK) == 0
    keep_picture(page, "opening")


@only_full
def test_patches_drop_while_the_slider_moves(visitor: Visitor) -> None:
    """In the event itself: no timer and no later frame stands between the slider and its patches."""
    moved = """keep => {
      const slider = document.querySelector("#ask-keep input[type=range]");
      slider.value = keep;
      slider.dispatchEvent(new Event("input", {bubbles: true}));
      return (%s)();
    }"""
    for keep, dropped in ((0.5, 98), (0.05, 186), (1.0, 0)):
        assert round(196 * visitor.page.evaluate(moved % DARK, keep)) == dropped


@only_full
def test_ask_answers_as_the_library_does(visitor: Visitor, engine: Any) -> None:
    picture, question = questions()[1]
    visitor.example(1)
    visitor.set_up(SETTINGS["sgl"])
    visitor.ask(question)
    assert visitor.differs(truth(engine.models, picture, question, SETTINGS["sgl"]), SETTINGS["sgl"]) == []
    keep_picture(visitor.page, "ask-sgl")
    assert violations(visitor.page) == []


@only_full
def test_a_question_is_text_and_nothing_else(visitor: Visitor) -> None:
    is_text(visitor, EVIL)


def is_text(visitor: Visitor, evil: str) -> None:
    visitor.ask(evil)
    assert visitor.page.evaluate("() => window.hit") is None
    assert evil.split()[0] in visitor.page.locator("#ask-images img").nth(1).get_attribute("alt")
    # The unknown words come back in the banner above the answers.
    assert "does not know" in visitor.page.locator("#ask-outside [role=alert]").inner_text()
    above, below = (visitor.page.locator(box).bounding_box() for box in ("#ask-outside", "#ask-answers"))
    assert above["y"] < below["y"]


@only_full
def test_an_empty_question_is_a_sentence(visitor: Visitor) -> None:
    visitor.page.fill("#ask-question textarea", "   ")
    visitor.page.click("#ask-go")
    visitor.page.wait_for_selector('#ask-alert [role=alert]:has-text("There is no question")')


@only_full
@pytest.mark.parametrize("name", ["Plan"])
def test_a_tab_opens_with_a_result(visitor: Visitor, name: str) -> None:
    visitor.tab(name)
    assert "LLaVA-1.5 7B" in visitor.page.locator("#plan-made .vp-result").inner_text()
    assert violations(visitor.page) == []
