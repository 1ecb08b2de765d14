"""The page of results, docs/results.md, from the grid's summaries alone (`python -m eval.pages` writes it).

A method is called better or worse only where the 95 % interval of the paired difference, clustered by image, excludes
zero. No method is named here but by its part: the baselines, and our own (`OWN`), which have a list of where they lose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from vlmprune.harness.format import milliseconds
from vlmprune.harness.stats import Interval

from . import markdown
from .markdown import bullets, paragraph
from .plots import Summary, prefill_flops
from .settings import BASELINES, SMALL
from .tables import about, accuracy, by_task, change, label, named, read, share

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


def page(folder: Path) -> str:
    """The whole page: a section for each task, those whose questions have families first."""
    tasks = by_task(read(folder))
    order = sorted(tasks, key=lambda task: not families(named(tasks[task], "none")))
    return "\n".join([f"# Results\n\n{HEAD}\n", *(section(task, tasks[task]) for task in order)])


def in_docs(folder: Path) -> str:
    """What to choose at each budget, of the task that the page begins with."""
    rows = max(by_task(read(folder)).values(), key=lambda rows: bool(families(named(rows, "none"))))
    said = bullets(f"**keep {keep}**: {recommended(rows, keep)}" for keep in budgets(rows))
    return f"{said}\n\n{paragraph(about(rows))}"


def section(task: str, rows: Sequence[Summary]) -> str:
    """What is said about one task."""
    image = f"../eval/results/{task}"
    return f"""## {task}

{paragraph(about(rows))}

### Methods and budgets

{overview(rows)}

![{rows[0]["main"]} against prefill FLOPs; bars are standard errors]({image}-pareto-flops.png)
![{rows[0]["main"]} against time; bars are standard errors]({image}-pareto-time.png)

### Which method

{which(rows)}

### Where our own method loses

{bullets(losses(rows))}

### Where methods fail

{failures(rows)}

![How often each part of the image is kept]({image}-positions.png)

{paragraph(leaning(rows))}
"""


def which(rows: Sequence[Summary]) -> str:
    """What to choose at each budget, and what is better than what there."""
    return "\n\n".join(
        f"**keep {keep}**\n\n{bullets([recommended(rows, keep), *compared(rows, keep)])}" for keep in budgets(rows)
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
    return 0 if found is None else int(found.low > 0) - int(found.high < 0)


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
    for some, words, empty in (
        (False, "without a guide", "All of these have a guide."),
        (True, "with a guide", "None of these has a guide."),
    ):
        pool = [row for row in equal if guided(row) == some]
        text += " " + (cheapest(pool, rows, words) if pool else empty)
    return text


def cheapest(pool: Sequence[Summary], rows: Sequence[Summary], words: str) -> str:
    """The cheapest of rows, by FLOPs and by time."""
    few = min(pool, key=lambda row: (relative(row, rows), seconds(row)))
    fast = min(pool, key=lambda row: (seconds(row), relative(row, rows)))
    if few is fast:
        return f"The cheapest {words}, by FLOPs and by time: {code(few)} ({cost(few, rows)})."
    return f"The cheapest {words}: by FLOPs {code(few)} ({cost(few, rows)}), by time {code(fast)} ({cost(fast, rows)})."


def compared(rows: Sequence[Summary], keep: str) -> list[str]:
    """A budget's methods against the unpruned model, the small model alone and the best baseline; what was left out."""
    there, unpruned = candidates(rows, keep), named(rows, "none")
    equal = [row for row in there if differs(row, unpruned) >= 0]
    said = [f"Not measurably worse than the unpruned model: {listed(equal)}."] if there else []
    plain = [row for row in there if row["method"] in BASELINES]
    best_plain = max(plain, key=lambda row: row["value"], default=None)
    for other, what in ((named(rows, SMALL), "small model alone"), (best_plain, "best baseline at this budget")):
        if other is not None and there:
            better = [row for row in there if differs(row, other) > 0]
            worse = [row for row in there if row is not other and row not in better]
            of = f"the {what}, {code(other)} ({accuracy(other)}; {cost(other, rows)})"
            said.append(f"Better than {of}: {listed(better)}. Not better: {listed(worse)}.")
    left = [row for row in rows if row["keep"] == keep and row not in there]
    for some, why in ((True, "cost at least as much as the unpruned model"), (False, "did not answer its questions")):
        if found := [row for row in left if (relative(row, rows) >= 1) == some]:
            said.append(f"Left out, since they {why}: {listed(found)}.")
    return said


def losses(rows: Sequence[Summary]) -> list[str]:
    """For each of our own methods and each budget, everything that is better than it."""
    said = []
    for keep in budgets(rows):
        there = sorted(candidates(rows, keep), key=lambda row: -row["value"])
        rivals = [*there, *(row for row in rows if row["method"] == SMALL)]
        for mine in (row for row in there if row["method"].startswith(OWN)):
            found = ((row, change(row, mine)) for row in rivals)
            text = ", ".join(f"{code(row)} by {lead(by)} ({cost(row, rows)})" for row, by in found if by and by.low > 0)
            of = f"keep {keep}: {code(mine)} ({accuracy(mine)}; {cost(mine, rows)}) is"
            said.append(f"{of} worse than {text}." if text else f"{of} not measurably worse than any other.")
    return said or ["The record has no row of our own method that can be compared."]


def lead(by: Interval) -> str:
    """A difference above zero in points with its interval; a lower end that rounds to zero has a digit more."""
    low = 100 * by.low
    return f"{100 * by.difference:.1f} points [{low:.{'1f' if low >= 0.05 else '1g'}}, {100 * by.high:.1f}]"


def leaning(rows: Sequence[Summary]) -> str:
    """What each method keeps at the bottom of the image, over what it keeps at the top."""
    found = {}
    for row in (row for row in rows if row["keep"] in budgets(rows)[-1:]):
        cells = [one or 0.0 for one in row["positions"]["kept_share"]]
        third = len(cells) // 3
        if top := sum(cells[:third]):
            found[row["method"]] = sum(cells[-third:]) / top
    text = ", ".join(f"`{method}` {found[method]:.2f}" for method in sorted(found, key=found.__getitem__))
    return f"Kept tokens in the bottom third of the image per one in the top third, at the smallest budget: {text}."


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


def families(row: Summary | None) -> dict[str, float]:
    """A row's number for each kind of question that its task distinguishes."""
    return {name.partition("/")[2]: value for name, value in row["metrics"].items() if "/" in name} if row else {}


def failures(rows: Sequence[Summary]) -> str:
    """Each row's change against the unpruned model by family, at the smallest budget."""
    unpruned = named(rows, "none")
    if not (whole := families(unpruned)):
        return "The questions of this task have no families."
    lines = []
    for row in (row for row in rows if row is not unpruned and row["keep"] in (None, *budgets(rows)[-1:])):
        mine = families(row)
        cells = {kind: f"{100 * (mine[kind] - value):+.1f}" for kind, value in whole.items() if kind in mine}
        sure = {kind for kind in cells if (found := change(row, unpruned, kind)) and found.excludes_zero}
        lines.append([label(row), *(f"**{cells[kind]}**" if kind in sure else cells.get(kind, "") for kind in whole)])
    said = "Change against the unpruned model in points, by family of question, at the smallest budget. " + (
        "Bold: the 95 % interval, clustered by image, excludes zero; so do one in twenty where nothing differs."
        if any(row.get("parts") for row in rows)
        else "This record has no answers by family, so there are no intervals and nothing is bold; a new run has them."
    )
    return paragraph(said) + "\n\n" + markdown.table(["method", *whole], lines)


# -- words -----------------------------------------------------------------------------------------------------------


def code(row: Summary) -> str:
    """A method's name."""
    return f"`{row['method']}`"


def seconds(row: Summary) -> float:
    """Median time a question; infinite where it was not taken."""
    return float(row["costs"].get("seconds", {}).get("total", math.inf))


def cost(row: Summary, rows: Sequence[Summary]) -> str:
    """FLOPs as a share of the unpruned model's, and the time."""
    return f"{relative(row, rows):.1%}, {milliseconds(seconds(row))}"


def listed(rows: Sequence[Summary]) -> str:
    """Names of methods."""
    return ", ".join(map(code, rows)) or "none"
