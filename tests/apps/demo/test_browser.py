"""What a person sees and does, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.grid import either, only_full

from .conftest import ARTEFACTS, PATIENCE, ROOT, Served
from .pictures import bomb, turned
from .support import SETTINGS, names, questions, truth
from .visitor import Visitor

EVIL = ["<img src=x onerror=window.hit=1>", "${window.hit=1}", "{{window.hit}} <script>"]


@pytest.fixture
def visitor(page: Any) -> Visitor:
    return Visitor(page)


def keep_picture(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True, animations="disabled")


@pytest.mark.parametrize("name", either(["sgl"], list(SETTINGS)))
def test_ask_answers_as_the_library_does(visitor: Visitor, engine: Any, name: str) -> None:
    picture, question = questions()[1]
    visitor.example(names()[1])
    visitor.set_up(SETTINGS[name])
    visitor.ask(question)
    assert visitor.differs(truth(engine.models, picture, question, SETTINGS[name]), SETTINGS[name]) == []
    keep_picture(visitor.page, f"ask-{name}")


@only_full
def test_the_slider_walks_through_the_layers(visitor: Visitor) -> None:
    visitor.set_up(SETTINGS["fastv"])
    visitor.ask(questions()[0][1])
    page = visitor.page
    first = page.locator("#ask-images img").first
    sources = []
    for layer, alive in ((0, 196), (5, 20), (1, 196), (2, 20)):
        page.locator("#ask-layer input[type=number]").fill(str(layer))
        page.keyboard.press("Tab")
        page.wait_for_selector(f'#ask-images img[alt*="layer {layer} of 0 to 5 sees {alive} of 196"]')
        sources.append(first.get_attribute("src"))
    assert len(set(sources)) == 4
    for choice, count in (("none", 1), ("small model, all layers", 2)):
        page.get_by_role("radio", name=choice).check()
        page.wait_for_function("count => document.querySelectorAll('#ask-images img').length == count", arg=count)
    assert "what SGL ranks by" in page.locator("#ask-images").inner_text()


@only_full
def test_compare_shows_every_method(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.compare import methods

    page = visitor.page
    page.get_by_role("tab", name="Compare").click()
    page.click("#compare-go")
    page.wait_for_selector("#compare-images img")
    rows = page.locator("#compare-table .vp-table tbody tr")
    shown = {row.locator("th").inner_text(): row.locator("td").first.inner_text() for row in rows.all()}
    assert list(shown) == ["unpruned", "small alone", *methods(engine)]
    picture, question = questions()[0]
    for name in ("fastv", "uniform"):
        setting = type(SETTINGS[name])(name, 0.25)
        assert shown[name] == truth(engine.models, picture, question, setting).texts[1]
    assert page.locator("#compare-table .vp-bars").count() == 2
    assert page.locator("#compare-images img").count() == len(shown)
    keep_picture(page, "compare")


@only_full
def test_caption_shows_the_tree(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.caption import describe
    from vlmprune.apps.demo.engine import last

    page = visitor.page
    page.get_by_role("tab", name="Caption").click()
    page.click("#caption-go")
    page.wait_for_selector("#caption-tree li")
    caption = last(describe(engine, questions()[0][0], 3, True))
    assert page.locator("#caption-text .vp-answer").inner_text() == caption.text
    assert page.locator("#caption-tree .vp-said").count() == len(caption.sentences)
    assert page.locator("#caption-tree .vp-dropped").count() == sum(not one.kept for one in caption.sentences)
    for node in caption.patches:
        assert node.name in page.locator("#caption-tree").inner_text()
    assert "prefill FLOPs" in page.locator("#caption-text").inner_text()
    keep_picture(page, "caption")


@only_full
def test_sinks_shows_layers_and_var(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.engine import last
    from vlmprune.apps.demo.sinks import RHO, P, find_and_edit

    page = visitor.page
    page.get_by_role("tab", name="Sinks").click()
    page.click("#sinks-go")
    page.wait_for_selector("#sinks-heat img")
    found = last(find_and_edit(engine, *questions()[0], P, RHO))
    answers = page.locator("#sinks-changed .vp-answer").all_inner_texts()
    assert answers == [found.before.text, found.after.text]
    shown = page.locator("#sinks-layers table").first.locator(".vp-number").all_inner_texts()
    one = found.sample
    assert shown == [f"{len(a)} visual, {len(b)} text" for a, b in zip(one.visual_sinks, one.text_sinks, strict=True)]
    page.locator("#sinks-layer input[type=number]").fill("1")
    page.keyboard.press("Tab")
    page.wait_for_selector('#sinks-heat img[alt*="layer 1:"]')
    keep_picture(page, "sinks")


@only_full
def test_plan_says_what_would_be_saved(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.plan import plan

    page = visitor.page
    page.get_by_role("tab", name="Plan").click()
    visitor.choose("plan-model", "LLaVA-1.5 13B, guided by LLaVA-1.5 7B")
    visitor.choose("plan-hardware", "a100")
    page.click("#plan-go")
    page.wait_for_selector("#plan-made .vp-bars")
    made = plan(engine, "LLaVA-1.5 13B, guided by LLaVA-1.5 7B", "a100", 0.25, 0, 64, 32)
    faster, fit = (table.locator(".vp-number").all_inner_texts() for table in page.locator("#plan-made .vp-bars").all())
    assert faster == [f"{row['speed_up']:.2f}x" for row in made["rows"]]
    assert fit == [f"{row['requests']:,}" for row in made["rows"]]
    assert [row["method"] for row in made["rows"]] == ["none", "random", "fastv", "sgl"]
    keep_picture(page, "plan")
    page.fill("#plan-text input", "-3")
    page.click("#plan-go")
    page.wait_for_selector('#plan-alert [role=alert]:has-text("out of range")')


# -- bad input ---------------------------------------------------------------------------------------------------------


@only_full
def test_bad_uploads_are_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_bytes(b"no picture at all")
    whole = ROOT.joinpath("vlmprune/tiny/example.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for file, says in (
        (tmp_path / "words.png", "'words.png' is not an image"),
        (tmp_path / "half.png", "'half.png'"),
        (bomb(tmp_path, 6000), "'bomb.png' has more than 24,000,000 pixels"),
    ):
        visitor.upload(file)
        visitor.page.wait_for_selector(f'#ask-alert [role=alert]:has-text("{says}")')
        # Asking clears the alert and says it anew: the one there before must not be taken for it.
        visitor.page.evaluate("() => { document.querySelector('#ask-alert [role=alert]').dataset.old = 'yes' }")
        visitor.page.click("#ask-go")
        visitor.page.wait_for_selector(f'#ask-alert [role=alert]:not([data-old]):has-text("{says}")')
        assert visitor.page.locator("#ask-answers .vp-card").count() == 0
    body = visitor.page.locator("body").inner_text()
    assert "Traceback" not in body
    assert str(tmp_path) not in body
    visitor.example(names()[0])
    visitor.ask(questions()[0][1])
    assert visitor.page.locator("#ask-alert [role=alert]").count() == 0


@only_full
def test_a_huge_upload_is_refused(visitor: Visitor, tmp_path: Path, demo: Served) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(21 * 2**20)
    visitor.clear()
    visitor.hand_in(huge, "text=/exceeds|too large|maximum/i", "visible")
    assert "Traceback" not in visitor.page.locator("body").inner_text()


@only_full
def test_a_wrong_type_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    visitor.clear()
    visitor.page.set_input_files("#ask-image input[type=file]", tmp_path / "notes.txt")
    visitor.page.click("#ask-go")
    visitor.page.wait_for_selector("#ask-alert [role=alert]")
    assert "image" in visitor.page.locator("#ask-alert").inner_text()


@only_full
def test_an_upload_is_seen_upright(visitor: Visitor, engine: Any, tmp_path: Path) -> None:
    from vlmprune.apps.demo.upload import read

    _, file = turned(tmp_path)
    visitor.upload(file)
    visitor.set_up(SETTINGS["fastv"])
    visitor.ask("What colour is the rectangle?")
    expected = truth(engine.models, read(file, file.name), "What colour is the rectangle?", SETTINGS["fastv"])
    assert visitor.differs(expected, SETTINGS["fastv"]) == []
    width, height = visitor.page.locator("#ask-images img").first.evaluate("i => [i.naturalWidth, i.naturalHeight]")
    assert height > width


def test_an_empty_question_is_a_sentence(visitor: Visitor) -> None:
    visitor.page.fill("#ask-question textarea", "   ")
    visitor.page.click("#ask-go")
    visitor.page.wait_for_selector('#ask-alert [role=alert]:has-text("There is no question")')


@pytest.mark.parametrize("evil", either(EVIL[:1], EVIL))
def test_a_question_is_text_and_nothing_else(visitor: Visitor, evil: str) -> None:
    visitor.ask(evil)
    assert visitor.page.evaluate("() => window.hit") is None
    assert evil.split()[0] in visitor.page.locator("#ask-images img").nth(1).get_attribute("alt")
    # The unknown words come back in a note.
    assert "does not know" in visitor.page.locator("#ask-answers .vp-note").inner_text()


# -- looks -------------------------------------------------------------------------------------------------------------


@only_full
def test_it_is_used_with_the_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.page
    page.keyboard.press("Tab")
    seen = []
    for _ in range(60):
        seen.append(page.evaluate("() => document.activeElement.closest('[id^=ask-]')?.id"))
        if seen[-1] == "ask-go":
            break
        page.keyboard.press("Tab")
    for box in ("ask-example", "ask-question", "ask-method", "ask-keep", "ask-go"):
        assert box in seen, seen
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask-cost table")
    page.locator("#ask-question textarea").focus()
    page.keyboard.press("End")
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    page.wait_for_selector('#ask-images img[alt*="star?!"]')


@only_full
def test_every_picture_has_words_and_every_input_a_name(visitor: Visitor) -> None:
    visitor.ask(questions()[0][1])
    page = visitor.page
    page.wait_for_selector('#ask-image img[alt="The image that is asked about"]')
    images = page.locator("[id^=ask-] img").all()
    assert len(images) == 3
    assert all((image.get_attribute("alt") or "").strip() for image in images)
    assert page.locator("html").get_attribute("lang") == "en"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button')].filter(e => e.offsetParent
            && !e.labels?.length && !e.ariaLabel && !e.title && !e.innerText?.trim()
            && !e.getAttribute('aria-labelledby') && !e.closest('label')).map(e => e.outerHTML.slice(0, 120))"""
    )
    assert unnamed == []


@only_full
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_and_dark(browser: Any, demo: Served, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 720}, color_scheme=scheme, is_mobile=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.goto(demo.url)
    page.wait_for_selector("#ask-go")
    visitor = Visitor(page)
    visitor.ask(questions()[0][1])
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    assert page.evaluate("() => document.body.classList.contains('dark')") == (scheme == "dark")
    contrasts = page.evaluate(CONTRAST, ["#ask-answers .vp-answer", "#ask-answers dt", "#ask-cost td", "figcaption"])
    assert min(contrasts) >= 4.5, contrasts
    keep_picture(page, f"phone-{scheme}")
    context.close()


# Of the text of each selector's first element on the first opaque background behind it.
CONTRAST = """selectors => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = c => c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  return selectors.map(selector => {
    let element = document.querySelector(selector);
    const ink = light(rgb(getComputedStyle(element).color));
    let paper = [255, 255, 255];
    for (; element; element = element.parentElement) {
      const c = rgb(getComputedStyle(element).backgroundColor);
      if (c.length < 4 || c[3] === 1) { paper = c; break; }
    }
    const [a, b] = [ink, light(paper)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""


@only_full
def test_the_pictures_are_the_drawings(visitor: Visitor) -> None:
    import base64
    import io

    visitor.ask(questions()[0][1])
    source = visitor.page.locator("#ask-images img").first.get_attribute("src")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as drawn:
        assert drawn.size == (420, 420)
