"""Published numbers, and ours beside them.

python -m eval.papers divprune                              the commands that measure the same
python -m eval.papers divprune --records results/divprune   ours beside the published ones, as far as there are any
python -m eval.papers divprune --published                  the published numbers alone, with their sources
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError
from vlmprune.harness.parse import number

from .. import markdown
from ..exits import Arguments, ended
from ..settings import ROWS, SMALL
from ..tables import read as read_summaries
from .data import Benchmark, Paper, PublishedRow, PublishedTable, names, read

Summary = Mapping[str, Any]


def what_to_run(paper: Paper) -> str:
    """The commands and what to know about them; no number."""
    first = ["No records were given, so there is nothing to compare yet. Measure the same with:", ""]
    then = ["", "and put the results beside the published ones with:", ""]
    ours = f"    python -m eval.papers {paper.name} --records {paper.out}"
    commands = [f"    {command}" for command in paper.commands()]
    return "\n".join([f"# {paper.title}", "", *first, *commands, *then, ours, "", *remarks(paper)])


def remarks(paper: Paper) -> list[str]:
    """What a table is about, what differs, and which benchmarks nothing measures."""
    said = list(paper.notes)
    columns = {one.name: one for table in paper.tables for one in table.benchmarks}.values()
    said += [f"{one.name}: {one.differs}." for one in columns if one.differs]
    reasons: dict[str, list[str]] = {}
    for one in columns:
        if one.task is None and not one.relative:
            reasons.setdefault(one.why, []).append(one.name)
    said += [f"Not run: {', '.join(group)} ({why})." for why, group in reasons.items()]
    return [markdown.bullets(said)] if said else []


def compared(paper: Paper, summaries: Sequence[Summary]) -> str:
    """Ours beside the published numbers, a row for each benchmark that has either."""
    parts = [f"# {paper.title}"]
    heading = ("method", "keep", "benchmark", "published", "ours", "difference")
    for table in paper.tables:
        made = ((row, one, cells(table, row, one, summaries)) for row in table.rows for one in table.benchmarks)
        rows = [[row.method, row.keep or "-", one.name, *found] for row, one, found in made if any(found)]
        parts += [f"## {table.model}", f"Published: {table.source}.", markdown.table(heading, rows)]
    return "\n\n".join([*parts, *remarks(paper)])


def ours(table: PublishedTable, row: PublishedRow, one: Benchmark, summaries: Sequence[Summary]) -> Summary | None:
    """Our summary of the same model, guide, method, budget, layer and benchmark, None without one."""
    model = table.guide if row.method == SMALL else table.model
    guide = None if row.method in ROWS or row.method == "none" else table.guide
    for summary in summaries:
        same = (summary["task"], summary["method"], summary["model"]) == (one.task, row.method, model)
        if not same or one.of(summary["metrics"]) is None or budget(summary["keep"]) != budget(row.keep):
            continue
        layer = (summary.get("options") or {}).get("layer")
        if row.keep is not None and table.layer is not None and budget(layer) != budget(table.layer):
            continue
        if summary["guide"] == guide:
            return summary
    return None


def relative(table: PublishedTable, row: PublishedRow, summaries: Sequence[Summary]) -> tuple[float, int] | None:
    """The average of our numbers in percent of our unpruned model's, and of how many benchmarks it is."""
    unpruned = next(one for one in table.rows if one.method == "none")
    parts = []
    for one in table.benchmarks:
        mine, full = (ours(table, of, one, summaries) for of in (row, unpruned))
        if mine is not None and full is not None and (whole := one.of(full["metrics"])):
            parts.append(100 * (one.of(mine["metrics"]) or 0.0) / whole)
    return (sum(parts) / len(parts), len(parts)) if parts else None


def budget(keep: Any) -> int | float | None:
    """A budget as a number: 0.10 and 0.1 are the same, 1 and 1.0 are not."""
    if keep is None:
        return None
    value = number(str(keep), "keep")
    return value if isinstance(value, int) else round(value, 9)


def cells(
    table: PublishedTable, row: PublishedRow, one: Benchmark, summaries: Sequence[Summary]
) -> tuple[str, str, str]:
    """The published number, ours with its standard error where it is of the same metric, and the difference."""
    published, value, more = row.values.get(one.name), None, ""
    if one.relative:
        if mean := relative(table, row, summaries):
            value, more = mean[0], f" (of {mean[1]} benchmarks)"
    elif found := ours(table, row, one, summaries):
        value = one.of(found["metrics"])
        if one.metric == found["main"] and found["standard_error"] is not None:
            more = f" ± {one.times * found['standard_error']:.2f}"
        if limit := (found.get("provenance") or {}).get("limit"):
            more += f" (first {limit} questions)"
    if value is None:
        return text(published), "", ""
    return text(published), f"{value:.2f}{more}", "" if published is None else f"{value - published:+.2f}"


def text(value: float | None) -> str:
    """A number as papers print it."""
    return "" if value is None else f"{value:g}"


def main(arguments: list[str] | None = None) -> int:
    """Print commands or tables; bad input is one line on stderr and status 2."""
    return ended(lambda: run(arguments))


def run(arguments: list[str] | None) -> int:
    """`main` without its exit statuses."""
    parser = Arguments(
        prog="python -m eval.papers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paper", metavar="PAPER", help=", ".join(names()))
    parser.add_argument("--records", type=Path, metavar="DIR", help="what eval.run wrote with --out")
    parser.add_argument("--published", action="store_true", help="print the published numbers, with their sources")
    args = parser.parse_args(arguments)
    paper = read(args.paper)
    if args.records is None:
        print(compared(paper, ()) if args.published else what_to_run(paper))
        return 0
    summaries = read_summaries(args.records)
    if not any(ours(t, row, one, summaries) for t in paper.tables for row in t.rows for one in t.benchmarks):
        raise VlmpruneError(
            f"None of the records below {str(args.records)!r} is of a model, method, budget and benchmark of "
            f"this paper; run the command that python -m eval.papers {paper.name} prints."
        )
    print(compared(paper, summaries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
