"""A person at the tab Ask."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Literal

from .support import Setting, Truth


class Visitor:
    """Drives the page by what a person can see and touch."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def choose(self, box: str, option: str) -> None:
        self.page.locator(f"#{box} input").first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def number(self, box: str, value: float) -> None:
        self.page.locator(f"#{box} input[type=number]").fill(f"{value:g}")
        self.page.keyboard.press("Tab")

    def example(self, name: str) -> None:
        self.choose("ask-example", name)
        question = json.dumps(name.partition(" ")[2])
        self.page.wait_for_function(
            f"() => document.querySelector('#ask-question textarea').value === {question}"
        )
        self.page.wait_for_selector("#ask-image img")

    def clear(self) -> None:
        self.choose("ask-example", "My own image")
        self.page.wait_for_selector("#ask-image input[type=file]", state="attached")

    def hand_in(self, file: Path, shows: str, state: Literal["attached", "visible"]) -> None:
        """Choose a file until the page shows something of it.

        While an answer of the server draws the upload box anew, a file put into the old box is lost; a person, who
        sees that nothing happened, chooses it again.
        """
        from playwright.sync_api import TimeoutError as TooLong

        for last in (False,) * 30 + (True,):
            with contextlib.suppress(TooLong):  # the box is gone: taken, or being drawn anew
                self.page.set_input_files("#ask-image input[type=file]", file, timeout=20_000)
            try:
                self.page.wait_for_selector(shows, state=state, timeout=20_000)
                return
            except TooLong:
                if last:
                    raise

    def upload(self, file: Path) -> None:
        """A picture of one's own, in place of whatever is there."""
        self.choose("ask-example", "My own image")
        self.page.wait_for_selector("#ask-image img", state="detached")
        self.hand_in(file, "#ask-image img", "attached")
        self.page.fill("#ask-question textarea", "What is in the picture?")

    def set_up(self, setting: Setting) -> None:
        self.choose("ask-method", setting.method)
        self.number("ask-keep", setting.keep)
        if setting.method == "sgl":
            box = self.page.locator("#ask-early input[type=checkbox]")
            box.wait_for(state="visible")
            box.set_checked(setting.exit_at is not None)
            if setting.exit_at is not None:
                self.number("ask-sure", setting.exit_at)

    def ask(self, question: str) -> None:
        """Ask and wait for the end; the question must differ from the one before, or be the first."""
        self.page.fill("#ask-question textarea", question)
        self.page.click("#ask-go")
        self.page.wait_for_function(
            """question => [...document.querySelectorAll('#ask-images img')].some(i => i.alt.includes(question))
                && document.querySelector('#ask-cost table')""",
            arg=question,
        )

    def differs(self, truth: Truth, setting: Setting) -> list[str]:
        """Where the page says something else than the library."""
        cards = [
            (card.locator("h3").inner_text(), card.locator(".vp-answer").inner_text(), card.locator("dl").inner_text())
            for card in self.page.locator("#ask-answers .vp-card").all()
        ]
        titles = ["Unpruned", f"Pruned: {setting.method}, keep {float(setting.keep)}", "Small model alone"]
        wanted = [truth.texts[0], truth.texts[1], truth.small]
        wrong = [f"{title} is not {want}" for (title, _, _), want in zip(cards, titles, strict=True) if title != want]
        wrong += [f"{text!r}, not {want!r}" for (_, text, _), want in zip(cards, wanted, strict=True) if text != want]
        counted = [f"{truth.visual} of {truth.visual}", f"{len(truth.kept)} of {truth.visual}"]
        facts = [card[2] for card in cards]
        wrong += [f"{said} without {want}" for said, want in zip(facts, counted, strict=False) if want not in said]
        if setting.method == "sgl":
            exited = "yes, its answer was taken" if not len(truth.kept) else "no"
            wrong += [] if exited in cards[2][2] else [f"{cards[2][2]} without {exited}"]
        return wrong
