"""Accessibility by axe-core, which the package axe-playwright-python brings along."""

from __future__ import annotations

from typing import Any

from .conftest import need

# WCAG 2.1 A and AA, and what axe-core's authors advise beyond it.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def violations(page: Any) -> list[str]:
    """What axe-core finds on the page as it is: how bad, the rule, and the elements."""
    need("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    # A colour that still fades is no colour to judge by.
    page.wait_for_function("() => document.getAnimations().every(one => one.playState !== 'running')")
    found = Axe().run(page, options={"resultTypes": ["violations"], "runOnly": RULES}).response["violations"]
    return [f"{one['impact']}: {one['id']}, {[node['target'] for node in one['nodes']]}" for one in found]
