"""The page of the worlds, docs/worlds.md, from their summaries alone (`python -m eval.pages` writes it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmprune.errors import VlmpruneError
from vlmprune.harness.format import milliseconds

from .. import markdown
from ..markdown import bullets, paragraph
from ..plots import Summary
from ..results_page import budgets, code, losses, relative, seconds, which
from ..tables import about, accuracy, by_task, change, named, read

PAIRS = {
    "bundled": "the bundled pair, whose two models share a tower that was trained with labels for every patch",
    "second": "the second pair, whose towers differ and were trained on captions alone",
    "clips": "the pair for clips of eight frames",
}
HEAD = paragraph(
    "Written by `python -m eval.pages` from the [records](../eval/worlds/results/) of `python -m eval.worlds`, never "
    "by hand. Three worlds, three pairs: things on even backgrounds (`scenes`), things on photographs among "
    "distractors and over each other (`photographs`), both on four times the area (`-wide`), and clips. All are ours "
    "and procedural: they say how methods compare, not how far your model can be pruned. Methods are "
    "compared question by question: one is called better or worse only where the 95 % interval of the paired "
    "difference, clustered by scene, excludes zero; nothing is corrected for the number of comparisons. The models and "
    "how they were trained: [model card](../demos/tiny_vlm/README.md). Full tables, with times, lie beside the "
    "records. A method without a number for clips reads the vision tower patch by patch, and a clip's tokens are "
    "pooled from several; a row of fewer frames has none where the budget is less than one frame."
)
ROWS = paragraph(
    "Here and below: accuracy ± its standard error, clustered by scene (prefill FLOPs, a guide's included, in percent "
    "of the unpruned model's). `small-alone` is the small model, `blind` the large one without the image."
)
LOSS = 2  # points that a saving of time may cost
Cell = tuple[str, str]  # pair and task


def page(folder: Path) -> str:
    """The whole page: who answers what, every method in every cell, and what to choose there."""
    cells = {
        (pair, task): rows
        for pair in PAIRS
        if (folder / pair).is_dir()
        for task, rows in by_task(read(folder / pair)).items()
    }
    keeps = budgets(next(iter(cells.values())))
    parts = [
        f"# Harder worlds and other pairs\n\n{HEAD}",
        f"## What was asked\n\n{asked(cells)}",
        f"## No budget\n\n{ROWS}\n\n{methods(cells, None)}",
        *(f"## keep {keep}\n\n{methods(cells, keep)}" for keep in keeps),
        *(f"## {task}, {PAIRS[pair]}\n\n{cell(rows)}" for (pair, task), rows in cells.items()),
    ]
    return "\n\n".join(parts) + "\n"


def asked(cells: Mapping[Cell, Sequence[Summary]]) -> str:
    """Each cell's questions and the visual tokens of one."""
    lines = []
    for (pair, task), rows in cells.items():
        plain = named(rows, "none")
        if plain is None:
            raise VlmpruneError(f"The records of {pair}/{task} have no row of the unpruned model; run the cell again.")
        lines.append([pair, task, f"{plain['questions']:,}", f"{plain['costs']['visual_tokens']:.0f}"])
    return markdown.table(("pair", "world", "questions", "visual tokens"), lines)


def methods(cells: Mapping[Cell, Sequence[Summary]], keep: str | None) -> str:
    """Methods down, cells across, at one budget; None: the rows that have none."""
    names = dict.fromkeys(row["method"] for rows in cells.values() for row in rows if row["keep"] == keep)
    lines = []
    for method in names:
        found = [(named(rows, method, keep), rows) for rows in cells.values()]
        of = [
            "" if row is None or row["value"] is None else f"{accuracy(row)} ({relative(row, rows):.0%})"
            for row, rows in found
        ]
        lines.append([f"`{method}`", *of])
    return markdown.table(["method", *(f"{pair}, {task}" for pair, task in cells)], lines)


def cell(rows: Sequence[Summary]) -> str:
    """What to choose in a cell, what is no worse than what, and where our own methods lose."""
    lost = f"**Where our own methods lose**\n\n{bullets(losses(rows))}"
    return "\n\n".join([paragraph(about(rows)), which(rows), lost, clock(rows)])


def clock(rows: Sequence[Summary]) -> str:
    """How much faster a question is answered from end to end, a guide counted, and what the vision tower allows."""
    plain = named(rows, "none")
    assert plain is not None  # `asked` refuses records without it
    total, tower = seconds(plain), plain["costs"]["seconds"].get("vision", 0.0)
    said = [
        f"Unpruned {milliseconds(total)} a question, of which the vision tower takes {milliseconds(tower)}: what drops "
        f"tokens behind it cannot be more than {total / (tower or total):.1f} times as fast."
    ]
    for keep in budgets(rows):
        there = [row for row in rows if row["keep"] == keep and change(row, plain)]
        near = [row for row in there if 100 * (plain["value"] - row["value"]) <= LOSS]
        if near:
            row = min(near, key=seconds)
            said.append(
                f"keep {keep}: the fastest that loses {LOSS} points at most is {code(row)}, {total / seconds(row):.2f} "
                f"times as fast ({100 * (row['value'] - plain['value']):+.1f} points)."
            )
        else:
            said.append(f"keep {keep}: everything loses more than {LOSS} points.")
    return "**On the clock**\n\n" + bullets(said)
