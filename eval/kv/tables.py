"""The record of the cache's study, summed up, and the tables of its page (`python -m eval.pages` puts them there)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval import markdown
from eval.kv.rows import FULL, RANDOM, KVRow, label
from eval.markdown import bullets, paragraph, points
from vlmprune.harness.stats import interval, standard_error

METRICS = {"agreement": ("agreed", "tokens"), "kl": ("kl", "tokens"), "recall": ("found", "objects")}


def summary(
    task: str, number: int, rows: Sequence[tuple[KVRow | None, float | None]], lines: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A task's rows: each metric with its standard error, and minus chance at the same budget and minus the full
    cache with paired 95 % intervals, clustered by scene."""
    found: dict[str, tuple[list[dict[str, Any]], list[float], float]] = {}
    for row, keep in rows:
        name = label(row, keep)
        parts: list[Mapping[str, Any]] = []
        while (line := lines.get(f"{task}/{name}/{len(parts)}")) is not None and sum(
            len(one["scenes"]) for one in parts
        ) < number:
            parts.append(line)
        scenes = [scene for part in parts for scene in part["scenes"]]
        found[name] = scenes, [part["kv"] for part in parts], sum(part["seconds"] for part in parts)

    def ratio(name: str, metric: str) -> tuple[list[float], list[float]]:
        above, below = METRICS[metric]
        return [scene[above] for scene in found[name][0]], [scene[below] for scene in found[name][0]]

    out = []
    for row, keep in rows:
        own_name = label(row, keep)
        scenes, kv, seconds = found[own_name]
        others = {} if row is None else {"random": f"{RANDOM} {keep:g}", "full": FULL}
        made: dict[str, Any] = {
            "name": FULL if row is None else row.name, "keep": keep, "scenes": len(scenes), "kv": sum(kv) / len(kv),
            "seconds": seconds, "tokens": sum(scene["tokens"] for scene in scenes),
        }  # fmt: skip
        for metric in METRICS:
            own = ratio(own_name, metric)
            made[metric] = {"value": sum(own[0]) / max(1, sum(own[1])), "standard_error": standard_error(own)}
            for title, other in others.items():
                if other in found and other != own_name:
                    made[metric][title] = interval(own, ratio(other, metric)).record()
        out.append(made)
    return out


def table(record: Mapping[str, Any], task: str) -> str:
    """Markdown: every row of a task."""
    columns = ["keep", "row", "KV bytes", "same token", "minus random", "KL, nats", "minus random", *_last(task)]
    lines = []
    for row in record["tasks"][task]:
        cells = ["" if row["keep"] is None else f"{row['keep']:.0%}", row["name"], f"{row['kv']:.0%}"]
        for metric in METRICS:
            own = row[metric]
            cells.append(f"{own['value']:.3f} ± {own['standard_error']:.3f}")
            other = own.get("random")
            if other is None:
                cells.append("")
            elif metric == "kl":
                cells.append(f"{other['difference']:+.3f} ({other['low']:+.3f} to {other['high']:+.3f})")
            else:
                cells.append(points(other))
        lines.append(cells)
    return markdown.table(columns, lines)


def _last(task: str) -> tuple[str, str]:
    return ("digit found" if task == "needle" else "object recall"), "minus random"


def _better(row: Mapping[str, Any], metric: str) -> int:
    """1 where the interval says that a row beats chance, -1 where it says the opposite, else 0."""
    other = row[metric].get("random")
    if other is None:
        return 0
    sign = -1 if metric == "kl" else 1
    ends = sorted((sign * other["low"], sign * other["high"]))
    return int(ends[0] > 0) - int(ends[1] < 0)


def findings(record: Mapping[str, Any]) -> str:
    """Which rows differ from chance at the same budget, task by task, and what that means."""
    said = []
    for task, rows in record["tasks"].items():
        full = rows[0]
        chance = [row for row in rows if row["name"] == RANDOM]
        what = "the digit" if task == "needle" else "objects"
        values = ", ".join(f"{row['recall']['value']:.3f} at {row['keep']:.0%}" for row in chance)
        said.append(
            f"**{task}** ({full['scenes']} scenes, {full['tokens']:,} tokens): the full cache finds {what} with recall "
            f"{full['recall']['value']:.3f}; at random per layer it is {values}."
        )
        for sign, word in ((1, "Better"), (-1, "Worse")):
            found: dict[str, list[str]] = {}
            for row in rows:
                if _better(row, "recall") == sign:
                    found.setdefault(row["name"], []).append(f"{row['keep']:.0%}")
            if found:
                names = "; ".join(f"{name} ({', '.join(at)})" for name, at in found.items())
                said.append(f"{word} than random in recall, by its interval: {names}.")
    return bullets(said)


def verdict(record: Mapping[str, Any]) -> str:
    """How many comparisons with chance each method that looks at attention wins, and whether one may claim a gain."""
    looks = ("snapkv", "pyramidkv", "vl-cache", "vl-cache, TGV-KV's budgets", "vl-cache, PrefixKV's budgets", "adakv",
             "task-kv")  # fmt: skip
    by_task = {
        task: [_better(row, metric) for row in rows if row["name"] in looks for metric in ("agreement", "recall")]
        for task, rows in record["tasks"].items()
    }
    cells, needle = [cell for own in by_task.values() for cell in own], by_task.get("needle", [])
    won, lost = cells.count(1), cells.count(-1)
    end = (
        f"so random per layer is as good or better but for the needle ({needle.count(1)} of {len(needle)} better), and "
        "no gain of ranking by attention is claimed on this pair where an image is described"
        if won - needle.count(1) <= lost + len(cells) // 20
        else "so what ranks by attention is not random here, and the tables say where"
    )
    return paragraph(
        f"Of {len(cells)} comparisons of cuts that rank by attention with random entries at the same budget (same "
        f"token, recall), {won} are better by their interval, {lost} worse and {len(cells) - won - lost} undecided; "
        f"{end}. One in 40 would come out better by chance alone."
    )


def about(record: Mapping[str, Any]) -> str:
    """Where the numbers come from."""
    found = record["provenance"]
    commits = ", ".join(commit[:10] for commit in record["commits"])
    spent = sum(row["seconds"] for rows in record["tasks"].values() for row in rows) / 60
    return paragraph(
        f"{found['model'].capitalize()}, {found['backend']}, seed {found['seed']}; {found['machine']}; "
        f"commit{'s' * (len(record['commits']) > 1)} {commits}; {spent:.0f} minutes of one core."
    )


def in_docs(record: Mapping[str, Any]) -> str:
    """The sentences on the cache's page."""
    parts = [verdict(record)]
    for task in ("captions", "second", "needle"):
        rows = record["tasks"][task]
        at = {row["name"]: row for row in rows if row["keep"] in (None, 0.1)}
        names = (FULL, RANDOM, "snapkv", "vl-cache", "pruned, uniform")
        what = "digits found" if task == "needle" else "objects found"
        values = ", ".join(f"{name} {at[name]['recall']['value']:.2f}" for name in names)
        parts.append(paragraph(f"{what.capitalize()} in the task {task!r}, at 10 %: {values}."))
    return "\n".join(parts)
