"""``vlmprune methods``: what can be named after ``--method``."""

from __future__ import annotations

import inspect
from typing import Any

from ...harness.format import console, print_json
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
    from rich import box
    from rich.table import Table

    records = describe()
    if json:
        print_json(records)
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("method", "layer", "what it does"):
        table.add_column(heading)
    for record in records:
        table.add_row(record["name"], str(record["options"].get("layer", "-")), record["summary"])
    console().print(table)
