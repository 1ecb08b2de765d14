"""The page of results, docs/results.md, from the grid's summaries alone (`python -m eval.pages` writes it).

A method is called better or worse only where the 95 % interval of the paired difference, clustered by image, excludes
zero. No method is named here but by its part: the baselines, and our own (`OWN`), which have a list of where they lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vlmprune.harness.format import milliseconds

from . import markdown
from .markdown import bullets, paragraph
from .plots import Summary, prefill_flops
from .settings import BASELINES, SMALL
from .stats import Interval
from .tables import about, by_task, change, label, named, read, share

OWN = "sgl"  # what our own methods' names begin with
HEAD = paragraph(
    "Written by `python -m eval.pages` from the [records of the grid](../eval/results/), never by hand. Methods are "
    "compared question by question: one is called better or worse only where the 95 % interval of the paired "
    "difference, clustered by image, excludes zero. The intervals are corrected neither for the number of comparisons "
    "nor for choosing the best method on the same questions. `keep` is what a method keeps from its own layer on, so "
    "compare costs by FLOPs, which include a guide's. Further columns (tokens, KV cache, times by stage, p, the "
    "questions that downsampling fails) are in the [full tables](../eval/results/tables.md); "
    "[eval](../eval/README.md) explains them."
)
IMAGES = """![{main} against prefill FLOPs, bars are standard errors](../eval/results/{task}-pareto-flops.png)
![{main} against time, bars are standard errors](../eval/results/{task}-pareto-time.png)"""


def page(folder: Path) -> str:
    """The whole page: a section for each task, those whose questions have families first."""
    tasks = by_task(read(folder))
    order = sorted(tasks, key=lambda task: not families(tasks[task]))
    return "\n\n".join(["# Results", HEAD, *(section(task, tasks[task]) for task in order)]) + "\n"


def first(folder: Path) -> Sequence[Summary]:
    """The rows of the task whose questions have families: what other pages quote."""
    return max(by_task(read(folder)).values(), key=lambda rows: bool(families(rows)))


def in_readme(folder: Path) -> str:
    """What to choose at each budget."""
    rows = first(folder)
    said = bullets(f"**keep {keep}**: {recommended(rows, keep)}" for keep in budgets(rows))
    return f"{said}\n\n{paragraph(about(rows))}"


def in_sgl(folder: Path) -> str:
    """What is better than our own method."""
    return bullets(losses(first(folder)))


def section(task: str, rows: Sequence[Summary]) -> str:
    """What is said about one task."""
    which = [
        f"**keep {keep}**\n\n{bullets([recommended(rows, keep), *compared(rows, keep)])}" for keep in budgets(rows)
    ]
    return "\n\n".join(
        [
            f"## {task}",
            paragraph(about(rows)),
            "### Methods and budgets",
            overview(rows),
            IMAGES.format(main=rows[0]["main"], task=task),
            "### Which method",
            *which,
            "### Where our own method loses",
            bullets(losses(rows)),
            "### Where methods fail",
            failures(rows),
            f"![How often each part of the image is kept](../eval/results/{task}-positions.png)",
            paragraph(leaning(rows)),
        ]
    )


# -- what is compared ------------------------------------------------------------------------------------------------


def budgets(rows: Sequence[Summary]) -> list[str]:
    """Every `keep` of the rows, from large to small."""
    largest: dict[str, float] = {}
    for row in rows:
        if row["keep"] is not None:
            largest[row["keep"]] = max(share(row), largest.get(row["keep"], 0.0))
    return sorted(largest, key=lambda keep: -largest[keep])


def relative(row: Summary, rows: Sequence[Summary]) -> float:
    """Prefill FLOPs with a guide's, over the unpruned model's; NaN where one of them was not counted."""
    unpruned = named(rows, "none")
    mine, whole = prefill_flops(row), None if unpruned is None else prefill_flops(unpruned)
    return math.nan if mine is None or not whole else mine / whole


def candidates(rows: Sequence[Summary], keep: str) -> list[Summary]:
    """What can be recommended at a budget: rows that cost less than the unpruned model and answered its questions."""
    unpruned = named(rows, "none")
    return [row for row in rows if row["keep"] == keep and relative(row, rows) < 1 and change(row, unpruned)]


def best(rows: Sequence[Summary], keep: str) -> list[Summary]:
    """The most accurate candidate, then every one that cannot be distinguished from it, by accuracy."""
    there = sorted(candidates(rows, keep), key=lambda row: (-row["value"], relative(row, rows)))
    return there[:1] + [row for row in there[1:] if not differs(row, there[0])]


def differs(row: Summary, other: Summary | None) -> int:
    """1 where a row is better than another, -1 where it is worse, 0 where the record does not say."""
    found = change(row, other)
    if found is None or not found.excludes_zero:
        return 0
    return 1 if found.low > 0 else -1


def guided(row: Summary) -> bool:
    """Whether another run is needed before the model's own."""
    return bool(row["costs"].get("guide_flops"))


# -- sentences -------------------------------------------------------------------------------------------------------


def recommended(rows: Sequence[Summary], keep: str) -> str:
    """The most accurate method of a budget, what equals it, and the cheapest of these."""
    equal = best(rows, keep)
    if not equal:
        return "No method costs less than the unpruned model and answered its questions."
    text = f"{code(equal[0])} has the highest {equal[0]['main']}, {accuracy(equal[0])}"
    if equal[1:]:
        text += f". Not distinguishable from it: {', '.join(f'{code(row)} ({accuracy(row)})' for row in equal[1:])}."
    elif len(candidates(rows, keep)) > 1:
        text += ", and is better than every other method."
    else:
        text += ", and is the only method at this budget."
    for some in (False, True):
        text += " " + cheapest(
            [row for row in equal if guided(row) == some], rows, "with a guide" if some else "without a guide"
        )
    return text


def cheapest(equal: Sequence[Summary], rows: Sequence[Summary], words: str) -> str:
    """The cheapest of rows, by FLOPs and by time."""
    if not equal:
        return "None of these has a guide." if words == "with a guide" else "All of these have a guide."
    few = min(equal, key=lambda row: (relative(row, rows), seconds(row)))
    fast = min(equal, key=lambda row: (seconds(row), relative(row, rows)))
    if few is fast:
        return f"The cheapest {words}, by FLOPs and by time: {code(few)} ({cost(few, rows)})."
    return f"The cheapest {words}: by FLOPs {code(few)} ({cost(few, rows)}), by time {code(fast)} ({cost(fast, rows)})."


def compared(rows: Sequence[Summary], keep: str) -> list[str]:
    """A budget's methods against the unpruned model, the small model alone and the best baseline; what was left out."""
    there, unpruned = candidates(rows, keep), named(rows, "none")
    said: list[str] = []
    if not there or unpruned is None:
        return said
    of = f"the unpruned model ({accuracy(unpruned)})"
    equal = [row for row in there if differs(row, unpruned) >= 0]
    said.append(f"No measurable loss against {of}: {listed(equal)}." if equal else f"Every method is worse than {of}.")
    plain = [row for row in there if row["method"] in BASELINES]
    for other, what in (
        (named(rows, SMALL), "the small model alone"),
        (max(plain, key=lambda row: row["value"], default=None), "the best baseline at this budget"),
    ):
        if other is None:
            continue
        others = [row for row in there if row is not other]
        better = [row for row in others if differs(row, other) > 0]
        of = f"{what}, {code(other)} ({accuracy(other)}; {cost(other, rows)})"
        if len(better) == len(others):
            said.append(f"Every method is better than {of}.")
        else:
            said.append(f"Better than {of}: {listed(better) or 'none'}. Not better: ")
            said[-1] += f"{listed([row for row in others if row not in better])}."
    left = [row for row in rows if row["keep"] == keep and row not in there]
    for some, why in (
        ([row for row in left if relative(row, rows) >= 1], "they cost at least as much as the unpruned model"),
        ([row for row in left if not relative(row, rows) >= 1], "they did not answer the same questions"),
    ):
        said += [f"Left out, since {why}: {listed(some)}."] if some else []
    return said


def losses(rows: Sequence[Summary]) -> list[str]:
    """For each of our own methods and each budget, everything that is better than it."""
    said = []
    for keep in budgets(rows):
        rivals = sorted(candidates(rows, keep), key=lambda row: -row["value"])
        for mine in (row for row in rivals if row["method"].startswith(OWN)):
            found = [
                (row, change(row, mine)) for row in [*rivals, named(rows, SMALL)] if row and differs(row, mine) > 0
            ]
            text = ", ".join(f"{code(row)} by {lead(by)} ({cost(row, rows)})" for row, by in found if by is not None)
            of = f"{code(mine)} ({accuracy(mine)}; {cost(mine, rows)})"
            said.append(
                f"keep {keep}: " + (f"{of} is worse than {text}." if text else f"none is measurably better than {of}.")
            )
    return said or ["The record has no row of our own method that can be compared."]


def lead(by: Interval) -> str:
    """A difference above zero in points with its interval; a lower end that rounds to zero has a digit more."""
    low = 100 * by.low
    return f"{100 * by.difference:.1f} points [{low:.{'1f' if low >= 0.05 else '1g'}}, {100 * by.high:.1f}]"


def leaning(rows: Sequence[Summary]) -> str:
    """What each method keeps at the bottom of the image, over what it keeps at the top."""
    found = []
    for row in (row for row in rows if row["keep"] in budgets(rows)[-1:]):
        shares, long = (
            row["positions"]["kept_share"],
            max(1, row["positions"]["rows"] // 3) * row["positions"]["columns"],
        )
        top, bottom = (sum(one or 0.0 for one in part) for part in (shares[:long], shares[-long:]))
        if top:
            found.append((bottom / top, row["method"]))
    text = ", ".join(f"`{method}` {ratio:.2f}" for ratio, method in sorted(found))
    return (
        f"At the smallest budget, tokens kept in the bottom third of the image per token kept in the top third: {text}."
    )


# -- tables ----------------------------------------------------------------------------------------------------------


def overview(rows: Sequence[Summary]) -> str:
    """Methods down, budgets across."""
    keeps = [None, *budgets(rows)]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [named(rows, method, keep) for keep in keeps]
        with_guide = any(row is not None and guided(row) for row in mine)
        cells = ["" if row is None else f"{accuracy(row)} ({cost(row, rows)})" for row in mine]
        lines.append([method, "yes" if with_guide else "", *cells])
    said = paragraph(
        f"{rows[0]['main']} ± its standard error, clustered by image (prefill FLOPs, a guide's included, in percent of "
        "the unpruned model's; median time per question)."
    )
    head = ["method", "guide", "no budget", *(f"keep {keep}" for keep in keeps[1:])]
    return markdown.table(head, lines) + "\n\n" + said


def families(rows: Sequence[Summary]) -> list[str]:
    """The kinds of question that the unpruned model's record distinguishes."""
    unpruned = named(rows, "none") or {}
    return list(
        unpruned.get("parts") or [name.partition("/")[2] for name in unpruned.get("metrics", {}) if "/" in name]
    )


def failures(rows: Sequence[Summary]) -> str:
    """Each row's change against the unpruned model by family, at the smallest budget."""
    unpruned, kinds = named(rows, "none"), families(rows)
    if unpruned is None or not kinds:
        return paragraph("The questions of this task have no families.")

    def cell(row: Summary, kind: str) -> str:
        if (found := change(row, unpruned, kind)) is not None:
            return f"**{100 * found.difference:+.1f}**" if found.excludes_zero else f"{100 * found.difference:+.1f}"
        mine, whole = (
            next((value for name, value in one["metrics"].items() if name.partition("/")[2] == kind), None)
            for one in (row, unpruned)
        )
        return "" if mine is None or whole is None else f"{100 * (mine - whole):+.1f}"

    shown = [row for row in rows if row is not unpruned and row["keep"] in (None, *budgets(rows)[-1:])]
    said = (
        f"Change against the unpruned model in points, by family of question, at the smallest budget; {len(kinds)} x "
    )
    said += f"{len(shown)} comparisons. "
    said += (
        "Bold: the 95 % interval, clustered by image, excludes zero; so do one in twenty where nothing differs."
        if unpruned.get("parts")
        else "This record has no answers by family, so there are no intervals and nothing is bold; a new run has them."
    )
    lines = [[label(row), *(cell(row, kind) for kind in kinds)] for row in shown]
    return paragraph(said) + "\n\n" + markdown.table(["method", *kinds], lines)


# -- words -----------------------------------------------------------------------------------------------------------


def code(row: Summary) -> str:
    """A method's name."""
    return f"`{row['method']}`"


def accuracy(row: Summary) -> str:
    """The main number with its standard error."""
    return "-" if row["value"] is None else f"{row['value']:.3f} ± {row['standard_error']:.3f}"


def seconds(row: Summary) -> float:
    """Median time a question; infinite where it was not taken."""
    return float(row["costs"].get("seconds", {}).get("total", math.inf))


def cost(row: Summary, rows: Sequence[Summary]) -> str:
    """FLOPs as a share of the unpruned model's, and the time."""
    return f"{relative(row, rows):.1%}, {milliseconds(seconds(row))}"


def listed(rows: Sequence[Summary]) -> str:
    """Names of methods."""
    return ", ".join(map(code, rows))
