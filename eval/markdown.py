"""Tables and sentences in Markdown, for every page of the evaluations."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence


def lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines of a table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A heading, the line below it, and rows of cells."""
    return "\n".join([lines([heading]), "|---" * len(heading) + "|", lines(rows)])


def bullets(texts: Iterable[str]) -> str:
    """A list, wrapped as the pages are."""
    return "\n".join("- " + paragraph(text, indent="  ").lstrip() for text in texts)


def paragraph(text: str, indent: str = "") -> str:
    """Wrapped at the pages' width; links and code stay whole."""
    return textwrap.fill(
        text, 130, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def points(change: Mapping[str, float]) -> str:
    """A difference of fractions in points, with its 95 % interval."""
    return f"{100 * change['difference']:+.1f} ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"
