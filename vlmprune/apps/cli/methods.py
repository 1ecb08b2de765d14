"""``vlmprune methods``: what can be named after ``--method``."""

from __future__ import annotations

import inspect
from typing import Any

from ...harness.format import console, print_json, table
from .options import JsonOption


def describe() -> list[dict[str, Any]]:
    """One record a registered method, from the class itself: its name, options with defaults, and summary."""
    import vlmprune

    records = []
    for name, method in vlmprune.methods().items():
        parameters = inspect.signature(method).parameters.values()
        records.append(
            {
                "name": name,
                "options": {p.name: None if p.default is p.empty else p.default for p in parameters},
                "required": [p.name for p in parameters if p.default is p.empty],
                "summary": (inspect.getdoc(method) or "").partition("\n")[0],
            }
        )
    return records


def methods(json: JsonOption = False) -> None:
    """List the pruning methods: name, the layer where each drops tokens, and what it does."""
    records = describe()
    if json:
        print_json(records)
        return
    rows = table(("method", "layer", "what it does"), left=(0, 1, 2))
    for record in records:
        rows.add_row(record["name"], str(record["options"].get("layer", "-")), record["summary"])
    console().print(rows)
