"""A person at the tab Ask, who waits for what the page shows and never for a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .conftest import ARTEFACTS
from .support import Setting, Truth, questions


def keep_picture(page: Any, name: str) -> None:
    """Leave a picture of the page to look at."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_function("() => [...document.images].every(image => image.complete)")
    page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True, animations="disabled")


# What a tab has drawn when it has opened.
OPENED = {
    "Ask": ("#ask-result .vp-result",),
    "Compare": ("#compare-table .vp-result", "#compare-images img"),
    "Sinks": ("#sinks-changed .vp-result", "#sinks-heat img", "#sinks-layers .vp-heads"),
    "Caption": ("#caption-text .vp-result", "#caption-tree li"),
    "Plan": ("#plan-made .vp-result", "#plan-made .vp-bars"),
}


class Visitor:
    """Drives the page by what a person can see and touch."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def tab(self, name: str) -> None:
        """Open a tab, which a narrow screen keeps in a menu, and wait for the result that it opens with."""
        shown = self.page.get_by_role("tab", name=name, exact=True)
        menu = self.page.locator(".overflow-menu > button")
        shown.or_(menu).locator("visible=true").first.wait_for()
        if shown.locator("visible=true").count():
            shown.click()
        else:
            menu.click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()
        for drawn in OPENED[name]:
            self.page.wait_for_selector(drawn)

    def choose(self, box: str, option: str) -> None:
        self.page.locator(f"#{box} input").first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def number(self, box: str, value: float) -> None:
        self.page.locator(f"#{box} input[type=number]").fill(f"{value:g}")
        self.page.keyboard.press("Tab")

    def details(self) -> None:
        """Open what is below the answers; Gradio draws it then."""
        if not self.page.locator("#ask-method").count():
            self.page.locator("#ask-details button").first.click()
        self.page.wait_for_selector("#ask-method input")

    def answer(self) -> str:
        """The number of the answer on the page; "" where there is none."""
        return str(self.page.evaluate("() => document.querySelector('#ask-result .vp-result')?.dataset.number ?? ''"))

    def until_answered(self, before: str) -> None:
        """Wait for another answer than the one of this number."""
        self.page.wait_for_function(
            "before => ![undefined, before].includes(document.querySelector('#ask-result .vp-result')?.dataset.number)",
            arg=before,
        )

    def example(self, number: int) -> None:
        before = self.answer()
        self.page.click(f"#ask-thumb-{number}")
        self.until_answered(before)
        asked = questions()[number][1]
        self.page.wait_for_function("it => document.querySelector('#ask-question textarea').value === it", arg=asked)

    def clear(self) -> None:
        """Take away image, answers and what was said about the last upload: the box for the next one is there then."""
        self.page.click("#ask-own")
        for gone in ("#ask-result .vp-result", "#ask-alert [role=alert]", "#ask-picture img"):
            self.page.wait_for_selector(gone, state="detached")
        self.page.wait_for_selector("#ask-upload", state="visible")
        self.page.wait_for_selector("#ask-image input[type=file]", state="attached")

    def hand_in(self, file: Path) -> None:
        self.page.set_input_files("#ask-image input[type=file]", file)

    def upload(self, file: Path) -> None:
        """A picture of one's own, in place of whatever is there; until the page shows it or says why not."""
        self.clear()
        self.hand_in(file)
        self.page.wait_for_selector("#ask-picture img, #ask-alert [role=alert]")
        self.page.fill("#ask-question textarea", "What is in the picture?")

    def set_up(self, setting: Setting) -> None:
        self.details()
        self.choose("ask-method", setting.method)
        self.number("ask-keep", setting.keep)
        if setting.method == "sgl":
            box = self.page.locator("#ask-early input[type=checkbox]")
            box.wait_for(state="visible")
            box.set_checked(setting.exit_at is not None)
            if setting.exit_at is not None:
                self.number("ask-sure", setting.exit_at)

    def ask(self, question: str) -> None:
        """Ask and wait for the end."""
        self.details()
        self.page.fill("#ask-question textarea", question)
        before = self.answer()
        self.page.click("#ask-go")
        self.until_answered(before)
        # What is under Details is that answer's too.
        self.page.wait_for_function(
            """question => document.querySelector('#ask-facts .vp-grid')?.dataset.number
                    === document.querySelector('#ask-result .vp-result')?.dataset.number
                && [...document.querySelectorAll('#ask-images img')].some(i => i.alt.includes(question))
                && document.querySelector('#ask-cost table')""",
            arg=question,
        )

    def differs(self, truth: Truth, setting: Setting) -> list[str]:
        """Where the page says something else than the library."""
        cards = [
            (card.locator("h2").inner_text(), card.locator(".vp-answer").inner_text(), card.locator("dl").inner_text())
            for card in self.page.locator("#ask-facts .vp-card").all()
        ]
        above = self.page.locator("#ask-answers .vp-answer").all_inner_texts()
        titles = ["Unpruned", f"Pruned: {setting.method}, keep {float(setting.keep)}", "Small model alone"]
        wanted = [truth.texts[0], truth.texts[1], truth.small]
        wrong = [f"{title} is not {want}" for (title, _, _), want in zip(cards, titles, strict=True) if title != want]
        wrong += [f"{text!r}, not {want!r}" for (_, text, _), want in zip(cards, wanted, strict=True) if text != want]
        wrong += [] if tuple(above) == truth.texts else [f"{above} above the details"]
        counted = [f"{truth.visual} of {truth.visual}", f"{len(truth.kept)} of {truth.visual}"]
        facts = [card[2] for card in cards]
        wrong += [f"{said} without {want}" for said, want in zip(facts, counted, strict=False) if want not in said]
        if setting.method == "sgl":
            exited = "yes, its answer was taken" if not len(truth.kept) else "no"
            wrong += [] if exited in cards[2][2] else [f"{cards[2][2]} without {exited}"]
        return wrong
