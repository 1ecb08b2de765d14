"""The tables of SGL's page, from the study's record alone (`python -m eval.pages` puts them there)."""

from __future__ import annotations

from typing import Any

from eval import markdown
from eval.sgl.study import RETENTION

METHODS = ("random", "uniform", "downsample", "fastv", "fastv-oracle", "sgl")


def cell(row: dict[str, Any] | None, full: float) -> str:
    """Accuracy, its standard error, and its share of the unpruned model's."""
    return "" if row is None else f"{row['accuracy']:.3f} ± {row['standard_error']:.3f} ({row['accuracy'] / full:.0%})"


def table(rows: list[dict[str, Any]], points: str) -> str:
    """Markdown: methods down, points across; a point that a method cannot reach stays blank."""
    full = next(row for row in rows if row["name"] == "none")
    lines = []
    for name in ("none", "small alone"):
        row = next(row for row in rows if row["name"] == name)
        lines.append([name, *[cell(row, full["accuracy"])] * len(RETENTION)])
    for name in METHODS:
        found = [next((r for r in rows if r["name"] == name and at in r.get(points, [])), None) for at in RETENTION]
        lines.append([name, *(cell(row, full["accuracy"]) for row in found)])
        if name == "sgl":
            left = [row and row["with_exit"] for row in found]
            lines.append(["sgl + exit", *(cell(row, full["accuracy"]) for row in left)])
    return markdown.table(["method", *(f"{point:.0%}" for point in RETENTION)], lines)


def by_guide(rows: list[dict[str, Any]]) -> str:
    """Accuracy split by whether the small model's own answer was right."""
    lines = []
    for row in rows:
        if "small_right" in row and row.get("at_retention"):
            right, wrong = row["small_right"], row["small_wrong"]
            cells = [f"{half['accuracy']:.3f} (n {half['questions']})" for half in (right, wrong)]
            lines.append([row["name"], f"{row['at_retention'][0]:.0%}", *cells])
    return markdown.table(["method", "retention", "small model right", "small model wrong"], lines)


def by_family(rows: list[dict[str, Any]]) -> str:
    """The families of question at 9 %."""
    chosen = [row for row in rows if row["name"] in ("none", "small alone") or 0.09 in row.get("at_retention", [])]
    families = list(chosen[0]["families"])
    lines = []
    for row in chosen:
        lines.append([row["name"], *(f"{row['families'][f]:.2f}" for f in families)])
    return markdown.table(["method", *families], lines)
