"""Tables and pictures, from records only.

    python -m eval.tables results               prints Markdown, writes results/tables.md and the pictures beside it
    python -m eval.tables results --no-pictures

Whatever a table compares was answered by the same model on the same questions; where records differ the table says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError
from vlmprune.harness.format import amount, milliseconds
from vlmprune.harness.record import write_text
from vlmprune.harness.stats import Interval, Paired, Ratio, interval, p_value, paired

from .exits import Arguments, ended
from .markdown import lines as markdown_lines
from .markdown import points
from .plots import draw, prefill_flops
from .settings import BASELINES, VIDEO_BASELINES

Summary = Mapping[str, Any]
TIMES = {"prefill": "prefill", "a token": "decode_a_token", "total": "total"}  # heading -> stage
NEEDED = {
    "task", "method", "keep", "model", "backend", "batch_size", "questions", "bad_count", "main", "value", "costs",
    "units", "scores", "data", "provenance",
}  # fmt: skip
RIGHT = 0.5  # a question's score from which on it counts as answered right, where scores are not 0 or 1


def read(folder: Path) -> list[dict[str, Any]]:
    """Every summary below a folder, baselines first, budgets from large to small.

    Raises:
        VlmpruneError: there is none, or one cannot be read.
    """
    found = []
    for path in sorted(folder.glob("**/summary.json")):
        try:
            one = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise VlmpruneError(f"{str(path)!r} is no summary ({error}); run the evaluation again.") from None
        if not isinstance(one, dict) or not one.keys() >= NEEDED:
            raise VlmpruneError(f"{str(path)!r} is no summary of an evaluation; remove it, or give another folder.")
        found.append(one)
    if not found:
        raise VlmpruneError(
            f"There is no summary.json below {str(folder)!r}; run python -m eval.run --out {folder} first."
        )
    order = {name: at for at, name in enumerate((*BASELINES, *VIDEO_BASELINES))}
    return sorted(
        found, key=lambda one: (one["task"], order.get(one["method"], len(order)), one["method"], -share(one))
    )


def share(summary: Summary) -> float:
    """The budget for sorting: kept over all visual tokens."""
    costs = summary["costs"]
    return costs.get("kept_tokens", 0) / costs["visual_tokens"] if costs.get("visual_tokens") else 0.0


def by_task(summaries: Sequence[Summary]) -> dict[str, list[Summary]]:
    """Summaries of each task, in order."""
    out: dict[str, list[Summary]] = {}
    for one in summaries:
        out.setdefault(one["task"], []).append(one)
    return out


def named(rows: Sequence[Summary], method: str, keep: str | None = None) -> Summary | None:
    """The row of a method at a budget."""
    return next((row for row in rows if row["method"] == method and row["keep"] == keep), None)


def label(row: Summary) -> str:
    """What a row is called in tables and legends."""
    return f"{row['method']} {row['keep']}" if row["keep"] else str(row["method"])


# -- what is compared ------------------------------------------------------------------------------------------------


def against(row: Summary, other: Summary | None) -> Paired | None:
    """A row minus another over the same units, None where there is nothing to compare."""
    found = None if row is other else _both(row, other)
    return None if found is None else paired(*found)


def change(row: Summary, other: Summary | None, part: str | None = None) -> Interval | None:
    """The same without p, which takes long, of all questions or of one part of them."""
    found = _both(row, other, part)
    return None if found is None else interval(*found)


def _both(row: Summary, other: Summary | None, part: str | None = None) -> tuple[Ratio, Ratio] | None:
    if other is None or row["value"] is None or other["value"] is None:
        return None
    first, second = (one["units"] if part is None else one.get("parts", {}).get(part) for one in (row, other))
    if first is None or second is None or first["ids_sha256"] != second["ids_sha256"]:
        return None
    return (first["above"], first["below"]), (second["above"], second["below"])


def where_downsampling_fails(row: Summary, rows: Sequence[Summary]) -> tuple[float, int] | None:
    """A row's mean score on the questions that the unpruned model gets right and downsampling at its budget wrong.

    These tell a method that finds what matters from one that could as well shrink the picture (VTC-Bench, 2025).

    Returns:
        The mean and the number of questions, None without these rows, budget or questions.
    """
    unpruned, shrunk = named(rows, "none"), named(rows, "downsample", row["keep"])
    if unpruned is None or shrunk is None or row["keep"] is None:
        return None
    if len({one["data"]["ids_sha256"] for one in (row, unpruned, shrunk)}) > 1:
        return None
    scores = [
        mine
        for mine, full, small in zip(row["scores"], unpruned["scores"], shrunk["scores"], strict=True)
        if None not in (mine, full, small) and full >= RIGHT > small
    ]
    return (sum(scores) / len(scores), len(scores)) if scores else None


# -- Markdown --------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Summary]) -> str:
    """One task's table with its caption."""
    found = [cells(row, rows) for row in rows]
    lines = [list(found[0]), ["---", "---"] + ["---:"] * (len(found[0]) - 2)]
    return markdown_lines(lines + [list(one.values()) for one in found]) + "\n\n" + caption(rows)


def cells(row: Summary, rows: Sequence[Summary]) -> dict[str, str]:
    """A row's cells by heading; that of exits is there in tables that have any."""
    unpruned, hard = named(rows, "none"), where_downsampling_fails(row, rows)
    versus = against(row, unpruned)
    costs, seconds = row["costs"], row["costs"].get("seconds", {})
    out = {
        "method": row["method"],
        "keep": row["keep"] or "",
        "tokens into LM": _cell(costs.get("lm_tokens"), "{:.1f}".format),
        "layer average": _cell(costs.get("layer_avg_tokens"), "{:.1f}".format),
        "prefill FLOPs": _part(prefill_flops(row), None if unpruned is None else prefill_flops(unpruned)),
        "KV cache": _part(costs.get("kv_bytes"), None if unpruned is None else unpruned["costs"].get("kv_bytes")),
        **{name: _cell(seconds.get(stage), milliseconds) for name, stage in TIMES.items()},
        row["main"]: accuracy(row),
        "vs. unpruned": "" if versus is None else points(versus.record()),
        "p": "" if versus is None else p_value(versus.p),
        "where downsampling fails": "" if hard is None else f"{hard[0]:.3f} (n={hard[1]})",
    }
    if any(one["costs"].get("exited_share") for one in rows):
        exits = costs.get("exited_share")
        out["exits"] = f"{exits:.1%}" if exits else ""
    return out


def caption(rows: Sequence[Summary]) -> str:
    """What a table must say about itself, faults included."""
    first = rows[0]
    return (
        f"{first['task']}: {first['main']} ± its standard error; the paired difference from the unpruned model in"
        f" points with its 95 % interval, and p from swapping results in pairs, all clustered by {seen(first)};"
        " FLOPs (a guide's included) and KV cache in percent of the unpruned model's; times are medians"
        + (", shared work measured once and charged to every row. " if first.get("share") else ". ")
        + about(rows)
    )


def seen(row: Summary) -> str:
    """What a task's questions are about."""
    return "video" if "frames" in row else "image"


def about(rows: Sequence[Summary]) -> str:
    """Where a table's numbers come from, and what is wrong with them."""
    questions = " or ".join(f"{count:,}" for count in sorted({row["questions"] for row in rows}))
    images = " or ".join(f"{count:,}" for count in sorted({len(row["units"]["above"]) for row in rows} - {0}) or [0])
    said = [
        f"{questions} questions on {images} {seen(rows[0])}s.",
        _every("Model", [row["model"] for row in rows]),
        _every("seed", [row["provenance"].get("seed", "unknown") for row in rows]),
        _every("backend", [row["backend"] for row in rows]),
        _every("batch size", [row["batch_size"] for row in rows]),
        _every("machine", [row["provenance"]["machine"] for row in rows]),
        _every("commit", [commit(row) for row in rows]),
    ]
    if "frames" in rows[0]:
        said.insert(2, _every("Frames", [row["frames"] for row in rows]))
    needed = (*BASELINES, *VIDEO_BASELINES) if "frames" in rows[0] else BASELINES
    if missing := [name for name in needed if not any(row["method"] == name for row in rows)]:
        said.append(f"Missing from this table: {', '.join(missing)}.")
    if len({row["data"]["ids_sha256"] for row in rows}) > 1:
        said.append("The rows do not answer the same questions, so they cannot be compared.")
    if bad := max((row["bad_count"] for row in rows), default=0):
        examples = "; ".join(
            f"{one['where']}: {one['why']}" for one in next(r for r in rows if r["bad_count"])["bad"][:3]
        )
        said.append(f"Up to {bad} faults in the data, left out and named in the summaries, for example {examples}.")
    if cut := max((len(row.get("incomplete", ())) for row in rows), default=0):
        said.append(f"Up to {cut} units were left out, because not all of their questions were there and answered.")
    return " ".join(said)


def commit(row: Summary) -> str:
    """The code a row was measured with; a copy without git's folder knows neither the commit nor of changes."""
    found = row["provenance"]
    return str(found["commit"])[:10] + (" with changes" if found["dirty"] else "")


def overview(summaries: Sequence[Summary]) -> str:
    """Methods by tasks, each as a share of the unpruned model's number, and the mean of the shares."""
    tasks = by_task([one for one in summaries if one["value"] is not None])
    names = list(dict.fromkeys((one["method"], one["keep"]) for one in summaries))
    lines = [["method", "keep", *tasks, "mean share of unpruned"], ["---", "---"] + ["---:"] * (len(tasks) + 1)]
    for method, keep in names:
        cells, shares = [], []
        for rows in tasks.values():
            row, unpruned = named(rows, method, keep), named(rows, "none")
            cells.append("" if row is None else f"{row['value']:.3f}")
            if row is not None and unpruned is not None and unpruned["value"]:
                shares.append(row["value"] / unpruned["value"])
        whole = len(shares) == len(tasks)
        lines.append([method, keep or "", *cells, f"{sum(shares) / len(shares):.1%}" if whole and shares else ""])
    return markdown_lines(lines)


def markdown(summaries: Sequence[Summary]) -> str:
    """Every task's table, after an overview where there are several tasks."""
    tasks = by_task(summaries)
    parts = [f"## {task}\n\n{table(rows)}" for task, rows in tasks.items()]
    return "\n\n".join(([f"## All tasks\n\n{overview(summaries)}"] if len(tasks) > 1 else []) + parts) + "\n"


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return "" if value is None else form(value)


def accuracy(row: Summary) -> str:
    """The main number with its standard error."""
    return "-" if row["value"] is None else f"{row['value']:.3f} ± {row['standard_error']:.3f}"


def _part(value: float | None, whole: float | None) -> str:
    if value is None:
        return ""
    return f"{value / whole:.1%}" if whole else amount(value)


def _every(what: str, values: Sequence[Any]) -> str:
    return f"{what}: {' / '.join(map(str, dict.fromkeys(values)))}."


def main(arguments: list[str] | None = None) -> int:
    """Print the tables and write them with the pictures; bad input is one line on stderr and status 2."""
    return ended(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Arguments(
        prog="python -m eval.tables", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="what eval.run wrote with --out")
    parser.add_argument("--out", type=Path, help="where tables.md and the pictures go; default: the same folder")
    parser.add_argument("--no-pictures", action="store_true", help="only the Markdown")
    args = parser.parse_args(arguments)
    summaries = read(args.folder)
    text = markdown(summaries)
    out = args.out or args.folder
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tables.md", text)
    if not args.no_pictures:
        for task, rows in by_task(summaries).items():
            draw(task, rows, out)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
