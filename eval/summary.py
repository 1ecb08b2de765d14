"""From a complete record to the run's summary: metrics, costs, positions, what was bad, and where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from vlmprune.harness.stats import standard_error

from .tasks.base import Task, by, incomplete
from .tasks.load import Data
from .worker import LATTICE

COSTS = (
    "visual_tokens", "kept_tokens", "lm_tokens", "layer_avg_tokens", "retention",
    "prefill_flops", "prefill_flops_full", "guide_flops", "kv_bytes", "kv_bytes_full",
)  # fmt: skip


def summarise(
    task: Task,
    data: Data,
    lines: Sequence[Mapping[str, Any]],
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """The summary of one run.

    `scores` are per question in the data's order (null: bad or unscored); `units` hold numerators and denominators of
    the main metric, from which tables compute significance, `parts` the same for each value of the task's `by`;
    `incomplete` are the units left out of every metric since not all of their questions are there and answered:
    [answered, wanted] by name.
    """
    bad = [{"where": one.where, "why": one.why} for one in data.bad]
    bad += [{"where": line["id"], "why": line["error"]} for line in lines if "error" in line]
    cut: dict[str, list[int]] = {}
    if task.whole:
        # From the data, since a record may be older than `members`.
        known = {one.id: one.meta for one in data.samples}
        lines = [{**line, "meta": known.get(line["id"], line.get("meta"))} for line in lines]
        every = [{"group": one.group, "meta": one.meta} for one in data.samples]
        cut = incomplete([line for line in lines if "error" not in line], every)
    answered = [line for line in lines if "error" not in line]
    scored = [line for line in answered if line["score"] is not None]
    units = recorded(task.units(scored) if scored else {})
    metrics = task.metrics(scored) if scored else {}
    return {
        **identity,
        "questions": len(lines),
        "answered": len(answered),
        "bad_count": len(bad),
        "bad": bad,
        "incomplete": cut,
        "main": task.main,
        "value": rounded(metrics.get(task.main)),
        "standard_error": rounded(standard_error((units["above"], units["below"]))) if units["above"] else None,
        "metrics": {name: rounded(value) for name, value in metrics.items()},
        "costs": costs([line["report"] for line in answered]),
        "positions": positions([line["report"]["cells"] for line in answered]),
        "data": {"sha256": data.sha256, "ids_sha256": ids_hash([line["id"] for line in lines])},
        "scores": [None if line.get("score") is None else rounded(line["score"]) for line in lines],
        "units": units,
        "parts": {name: recorded(task.units(part)) for name, part in by(scored, task.by).items()} if task.by else {},
        "provenance": dict(provenance),
    }


def recorded(units: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Units as a summary holds them; `below` is null where every unit weighs 1."""
    above, below = ([rounded(unit[at]) for unit in units.values()] for at in (0, 1))
    return {"ids_sha256": ids_hash(list(units)), "above": above, "below": below if set(below) - {1} else None}


def costs(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of tokens, FLOPs and bytes a question; medians of seconds, decoding also by answer token."""
    out: dict[str, Any] = {}
    for name in COSTS:
        values = [report[name] for report in reports if isinstance(report.get(name), int | float)]
        if values:
            out[name] = rounded(mean(values))
    stages = sorted({stage for report in reports for stage in report["seconds"]})
    seconds = {stage: median(report["seconds"].get(stage, 0.0) for report in reports) for stage in stages}
    if "decode" in seconds:
        seconds["decode_a_token"] = median(
            report["seconds"].get("decode", 0.0) / max(1, report["answer_tokens"]) for report in reports
        )
    exits = [float(report["exited"]) for report in reports if "exited" in report]
    if exits:
        out["exited_share"] = rounded(mean(exits))
    return out | {"seconds": {stage: rounded(value) for stage, value in seconds.items()}}


def positions(cells: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """Fraction of the visual tokens kept in each cell of the lattice, over all questions; null where none ever was."""
    kept = [sum(one["kept"][i] for one in cells) for i in range(LATTICE**2)]
    every = [sum(one["all"][i] for one in cells) for i in range(LATTICE**2)]
    fractions = [round(k / n, 4) if n else None for k, n in zip(kept, every, strict=True)]
    return {"rows": LATTICE, "columns": LATTICE, "kept_share": fractions}


def ids_hash(ids: Sequence[str]) -> str:
    """A hash of ids in order: two runs with the same one can be compared place by place."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def rounded(value: float | None) -> float | None:
    """Six significant digits, more than any of these numbers carries; most are whole and need no ".0"."""
    if value is None:
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() else short
