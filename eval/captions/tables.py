"""The tables of the captions' page, from the benchmark's record alone (`python -m eval.pages` puts them there)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval import markdown

QUALITIES = {  # metric in the record -> column
    "object_recall": "object recall",
    "object_precision": "object precision",
    "attribute_accuracy": "attribute accuracy",
    "chair_i": "CHAIR-i",
    "chair_s": "CHAIR-s",
}
COSTS = ("CIDEr", "visual tokens", "GFLOPs of prefill", "s")


def label(row: dict[str, Any]) -> str:
    """A row's name, with its method and budget where it was pruned."""
    return row["name"] if row["method"] == "none" else f"{row['name']}, {row['method']} {row['keep']:.0%}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: quality with bootstrap standard errors, then what a caption cost (tokens averaged over layers)."""
    columns = ["row", *QUALITIES.values(), *COSTS]
    lines = []
    for row in rows:
        found = [row["quality"][name] for name in QUALITIES]
        cells = [label(row), *(f"{one['value']:.3f} ± {one['standard_error']:.3f}" for one in found)]
        cost = row["cost"]
        cells += [f"{row['text']['cider']:.2f}", f"{cost['layer_avg_tokens']:,.0f}"]
        cells += [f"{cost['prefill_flops'] / 1e9:.1f}", f"{cost['seconds']:.2f}"]
        lines.append(cells)
    return markdown.table(columns, lines)
