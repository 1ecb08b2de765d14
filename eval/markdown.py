"""Tables in Markdown, for every page of the evaluations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def lines(rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells as lines of a table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A heading, the line below it, and rows of cells."""
    return "\n".join([lines([heading]), "|---" * len(heading) + "|", lines(rows)])
