"""The tables of the captions' page, from the benchmark's record alone (`python -m eval.pages` puts them there)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval import markdown
from eval.markdown import bullets, paragraph, points

Row = dict[str, Any]
ONE, PATCHES, MANY = "one global caption", "Patch Matters", "13 global samples, no filter"  # rows

QUALITIES = {  # metric in the record -> column
    "object_recall": "object recall",
    "object_precision": "object precision",
    "object_f1": "object F1",
    "attribute_accuracy": "attribute accuracy",
    "chair_i": "CHAIR-i",
    "chair_s": "CHAIR-s",
}
COSTS = ("CIDEr", "visual tokens", "GFLOPs of prefill", "CPU s")


def label(row: dict[str, Any]) -> str:
    """A row's name, with its method and budget where it was pruned."""
    return row["name"] if row["method"] == "none" else f"{row['name']}, {row['method']} {row['keep']:.0%}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: quality with standard errors by scene, then what a caption cost (tokens averaged over layers)."""
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


# -- sentences -------------------------------------------------------------------------------------------------------


def find(rows: Sequence[Row], name: str, method: str = "none", keep: float | None = None) -> Row | None:
    """A row by its name, method and budget."""
    return next((row for row in rows if (row["name"], row["method"], row["keep"]) == (name, method, keep)), None)


def quality(row: Row, metric: str) -> float:
    """A row's number."""
    return float(row["quality"][metric]["value"])


def seconds(record: Row) -> float:
    """How many times as long Patch Matters takes as one caption."""
    one, patches = (find(record["rows"], name) for name in (ONE, PATCHES))
    assert one is not None and patches is not None
    return float(patches["cost"]["seconds"] / one["cost"]["seconds"])


def change(record: Row, first: str, second: str, metric: str) -> str:
    """One row minus another in points, with the record's 95 % interval."""
    found = record["differences"][f"{first} minus {second}"][metric]
    middle, low, high = list(found.values())[:3] if isinstance(found, dict) else found
    return points({"difference": middle, "low": low, "high": high})


def in_docs(record: Row) -> str:
    """The README's sentence."""
    one, patches = (find(record["rows"], name) for name in (ONE, PATCHES))
    assert one is not None and patches is not None
    recall, precision = ((quality(one, name), quality(patches, name)) for name in ("object_recall", "object_precision"))
    return paragraph(
        f"On {one['scenes']} held-out scenes the bundled model's recall of objects is {recall[0]:.2f} with one "
        f"caption and {recall[1]:.2f} with Patch Matters, its precision {precision[0]:.2f} and {precision[1]:.2f}, for "
        f"{seconds(record):.1f} times the seconds; [eval/captions](../eval/captions/README.md) has every row, with "
        "pruning too, and where it breaks."
    )


def findings(record: Row) -> str:
    """What the unpruned rows show; the last sentence only where the record has the row with samples and the filter."""
    rows = record["rows"]
    one, patches, loose, many = (find(rows, name) for name in (ONE, PATCHES, f"{PATCHES}, no filter", MANY))
    assert one is not None and patches is not None and loose is not None and many is not None
    tokens = patches["cost"]["layer_avg_tokens"] / one["cost"]["layer_avg_tokens"]
    less = {
        name: 100 * (quality(loose, name) - quality(patches, name)) for name in ("object_recall", "object_precision")
    }
    objects = many["counts"]["objects"] / many["counts"]["captions"]
    said = [
        f"Patch Matters minus one caption, in points with 95 % intervals: object recall "
        f"{change(record, PATCHES, ONE, 'object_recall')}, precision "
        f"{change(record, PATCHES, ONE, 'object_precision')}, captions that name something that is not there "
        f"{change(record, PATCHES, ONE, 'chair_s')}, such mentions {change(record, PATCHES, ONE, 'chair_i')}; for "
        f"{tokens:.0f} times the visual tokens and {seconds(record):.1f} times the seconds.",
        f"Without the filter the recall changes by {less['object_recall']:+.1f} points and the precision by "
        f"{less['object_precision']:+.1f}.",
        f"{MANY.split()[0]} samples of the whole image without a filter find {quality(many, 'object_recall'):.3f} of "
        f"the objects in {quality(many, 'mentions_a_caption'):.0f} mentions per caption, where there are "
        f"{objects:.1f} objects.",
    ]
    for row in rows:
        if row["name"].endswith("same filter"):
            said.append(
                f"**What the patches add**: {row['name']}, without any patch, have an object F1 of "
                f"{quality(row, 'object_f1'):.3f} at {row['cost']['seconds']:.2f} s; Patch Matters has "
                f"{quality(patches, 'object_f1'):.3f} at {patches['cost']['seconds']:.2f} s, which is "
                f"{change(record, PATCHES, row['name'], 'object_f1')} points."
            )
    return bullets(said)


def pruned_findings(record: Row) -> str:
    """What pruning does to captions."""
    rows = record["pruned"]
    full = find(rows, PATCHES)
    assert full is not None
    said = []
    for method in ("sgl", "fastv", "random"):
        cells = []
        for keep in (0.18, 0.09):
            row = find(rows, PATCHES, method, keep)
            assert row is not None
            moved = [100 * (quality(row, name) - quality(full, name)) for name in ("object_recall", "object_precision")]
            share = row["cost"]["layer_avg_tokens"] / full["cost"]["layer_avg_tokens"]
            cells.append(
                f"at {keep:.0%} recall {moved[0]:+.1f} and precision {moved[1]:+.1f} points with {share:.0%} of the "
                "tokens"
            )
        said.append(f"`{method}`: " + "; ".join(cells) + ".")
    worst = find(rows, PATCHES, "sgl", 0.09)
    assert worst is not None
    counts = worst["counts"]
    said.append(
        f"`sgl` at 9 %: {counts['unread']} sentences name no object beside {counts['mentions']} mentions, "
        f"{quality(worst, 'mentions_a_caption'):.1f} mentions are made per caption where there are "
        f"{counts['objects'] / counts['captions']:.1f} objects, CIDEr is {worst['text']['cider']:.2f}."
    )
    return bullets(said)
