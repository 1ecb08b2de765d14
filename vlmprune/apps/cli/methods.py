"""``vlmprune methods``: the names that ``--method`` takes."""

from ...harness.format import console, print_json, table
from ...methods.catalogue import catalogue
from . import options


def methods(json: options.Json = False) -> None:
    """List the pruning methods: name, the layer where each drops tokens, and what it does."""
    records = catalogue()
    if json:
        print_json(records)
        return
    rows = table(("method", "layer", "what it does"), left=(0, 1, 2))
    for record in records:
        rows.add_row(record["name"], str(record["options"].get("layer", "-")), record["summary"])
    console().print(rows)
