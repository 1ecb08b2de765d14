"""``vlmprune methods``: what can be named after ``--method``."""

from __future__ import annotations

from ...harness.format import console, print_json
from ...methods.catalogue import catalogue
from .options import JsonOption


def methods(json: JsonOption = False) -> None:
    """List the pruning methods: name, the layer where each drops tokens, and what it does."""
    from rich import box
    from rich.table import Table

    records = catalogue()
    if json:
        print_json(records)
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("method", "layer", "what it does"):
        table.add_column(heading)
    for record in records:
        table.add_row(record["name"], str(record["options"].get("layer", "-")), record["summary"])
    console().print(table)
