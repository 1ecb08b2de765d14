"""What a person sees and does, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.grid import only_by_hand

from .conftest import ROOT
from .pictures import bomb, turned
from .support import SETTINGS, questions, truth
from .test_smoke import is_text
from .visitor import Visitor, keep_picture

EVIL = ["${window.hit=1}", "{{window.hit}} <script>"]


@only_by_hand
@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "sgl"])
def test_ask_answers_as_the_library_does(visitor: Visitor, engine: Any, name: str) -> None:
    picture, question = questions()[1]
    visitor.example(1)
    visitor.set_up(SETTINGS[name])
    visitor.ask(question)
    assert visitor.differs(truth(engine.models, picture, question, SETTINGS[name]), SETTINGS[name]) == []
    keep_picture(visitor.page, f"ask-{name}")


@only_by_hand
def test_the_slider_walks_through_the_layers(visitor: Visitor) -> None:
    visitor.set_up(SETTINGS["fastv"])
    visitor.ask(questions()[0][1])
    page = visitor.page
    first = page.locator("#ask-images img").first
    assert page.locator("#ask-images img").count() == 2
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


@only_by_hand
def test_compare_shows_every_method(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.compare import methods

    page = visitor.page
    visitor.tab("Compare")
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


@only_by_hand
def test_caption_shows_the_tree(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.caption import opening

    page = visitor.page
    visitor.tab("Caption")
    caption = opening(engine)
    # As the image shows, which has no other thing.
    things = ("gray star at the top left", "black cross at the right", "yellow rectangle at the center")
    assert all(thing in caption.text for thing in (*things, "green ring at the bottom left"))
    assert caption.text.count(".") == 4
    assert page.locator("#caption-text .vp-answer").inner_text() == caption.text
    assert page.locator("#caption-tree .vp-said").count() == len(caption.sentences)
    assert page.locator("#caption-tree .vp-dropped").count() == sum(not one.kept for one in caption.sentences)
    for node in caption.patches:
        assert node.name in page.locator("#caption-tree").inner_text()
    assert "prefill FLOPs" in page.locator("#caption-text").inner_text()
    keep_picture(page, "caption")


@only_by_hand
def test_sinks_shows_layers_and_var(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.engine import last
    from vlmprune.apps.demo.sinks import RHO, P, find_and_edit

    page = visitor.page
    visitor.tab("Sinks")
    found = last(find_and_edit(engine, *questions()[0], P, RHO))
    answers = page.locator("#sinks-changed .vp-answer").all_inner_texts()
    assert answers == [found.before.text, found.after.text]
    assert page.locator("#sinks-layers .vp-heads td").count() == 2 * found.sample.sink_share.numel()
    shown = page.locator("#sinks-layers .vp-bars").first.locator(".vp-number").all_inner_texts()
    one = found.sample
    assert shown == [f"{len(a)} visual, {len(b)} text" for a, b in zip(one.visual_sinks, one.text_sinks, strict=True)]
    page.locator("#sinks-layer input[type=number]").fill("1")
    page.keyboard.press("Tab")
    page.wait_for_selector('#sinks-heat img[alt*="layer 1:"]')
    keep_picture(page, "sinks")


@only_by_hand
def test_plan_says_what_would_be_saved(visitor: Visitor, engine: Any) -> None:
    from vlmprune.apps.demo.plan import plan

    page = visitor.page
    visitor.tab("Plan")
    visitor.choose("plan-model", "LLaVA-1.5 13B, guided by LLaVA-1.5 7B")
    visitor.choose("plan-hardware", "h100")
    visitor.number("plan-visual", 0)
    page.click("#plan-go")
    page.wait_for_selector('#plan-made .vp-result:has-text("LLaVA-1.5 13B")')
    made = plan(engine, "LLaVA-1.5 13B, guided by LLaVA-1.5 7B", "h100", 0.25, 0, 64, 32)
    faster, fit = (table.locator(".vp-number").all_inner_texts() for table in page.locator("#plan-made .vp-bars").all())
    assert faster == [f"{row['speed_up']:.2f}x" for row in made["rows"]]
    assert fit == [f"{row['requests']:,}" for row in made["rows"]]
    assert [row["method"] for row in made["rows"]] == ["none", "random", "fastv", "sgl"]
    keep_picture(page, "plan")
    page.fill("#plan-text input", "-3")
    page.click("#plan-go")
    page.wait_for_selector('#plan-alert [role=alert]:has-text("out of range")')


# -- bad input ---------------------------------------------------------------------------------------------------------


@only_by_hand
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
    visitor.example(0)
    visitor.ask(questions()[0][1])
    assert visitor.page.locator("#ask-alert [role=alert]").count() == 0


@only_by_hand
def test_a_huge_upload_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(21 * 2**20)
    visitor.clear()
    visitor.hand_in(huge)
    visitor.page.wait_for_selector("text=/exceeds|too large|maximum/i")
    assert "Traceback" not in visitor.page.locator("body").inner_text()


@only_by_hand
def test_a_wrong_type_is_refused(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    visitor.clear()
    visitor.hand_in(tmp_path / "notes.txt")
    visitor.page.click("#ask-go")
    visitor.page.wait_for_selector("#ask-alert [role=alert]")
    assert "image" in visitor.page.locator("#ask-alert").inner_text()


@only_by_hand
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


@only_by_hand
@pytest.mark.parametrize("evil", EVIL)
def test_a_question_is_text_and_nothing_else(visitor: Visitor, evil: str) -> None:
    is_text(visitor, evil)
