"""The published tables: one JSON file per paper, read into rows, columns and the commands that measure the same.

A number is there only with the source that it was read in; what was not at hand is left out. `page` is null where only
the text of a paper was at hand, `table` where the number was not read in the table itself.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError, nearest

from ..tasks.registry import TASKS

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Benchmark:
    """A column: the task of ours that measures it (None: there is none), which of its metrics, and in what unit.

    `metric` may be a sum, `perception+cognition`. `relative`: the average of the others, in percent of the unpruned
    model's. `why`: the reason for no task. `differs`: what is not the same.
    """

    name: str
    task: str | None
    metric: str = ""
    times: float = 1.0
    relative: bool = False
    why: str = ""
    differs: str = ""

    def of(self, metrics: Mapping[str, Any]) -> float | None:
        """The number of our metrics, in the paper's unit."""
        parts = [metrics.get(name) for name in self.metric.split("+")]
        return None if None in parts else self.times * sum(parts)  # type: ignore[arg-type]  # none of them is None


@dataclass(frozen=True)
class PublishedRow:
    """A method at a budget, as `eval.run` names them, and its numbers by benchmark."""

    method: str
    keep: str | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class PublishedTable:
    """Rows of one model that one source has."""

    model: str
    guide: str | None
    layer: str | None
    source: str
    benchmarks: tuple[Benchmark, ...]
    rows: tuple[PublishedRow, ...]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(one.task for one in self.benchmarks if one.task))

    def arguments(self, out: str) -> list[str]:
        """What `python -m eval.run` takes to measure the same: model, methods, budgets and benchmarks."""
        methods = list(dict.fromkeys(row.method for row in self.rows))
        keeps = list(dict.fromkeys(row.keep for row in self.rows if row.keep))
        guide = ["--guide", self.guide] if self.guide else []
        layer = ["--layer", self.layer] if self.layer else []
        what = ["--model", self.model, *guide, "--task", *self.tasks, "--method", *methods, "--keep", *keeps, *layer]
        return [*what, "--hub", "--out", out]


@dataclass(frozen=True)
class Paper:
    """One paper: its tables and what to know about them."""

    name: str
    title: str
    tables: tuple[PublishedTable, ...]
    notes: tuple[str, ...]

    @property
    def out(self) -> str:
        return f"results/{self.name}"

    def commands(self, out: str | None = None) -> list[str]:
        """The commands, each once; a table of benchmarks that no task measures has none."""
        made: dict[str, None] = {}
        for table in self.tables:
            if table.tasks:
                folder = f"{out or self.out}/{table.model.rpartition('/')[2]}"
                made[shlex.join(["python", "-m", "eval.run", *table.arguments(folder)])] = None
        return list(made)


def names() -> list[str]:
    """The papers' names."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read(name: str) -> Paper:
    """One paper's tables.

    Raises:
        VlmpruneError: there is none of this name.
    """
    if name not in names():
        raise VlmpruneError(f"There is no paper {name!r}; {nearest(name, names())}")
    values = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Paper(name, values["title"], tuple(map(_table, values["tables"])), tuple(values["notes"]))


def _table(values: Mapping[str, Any]) -> PublishedTable:
    rows = tuple(PublishedRow(row["method"], row["keep"], row["values"]) for row in values["rows"])
    benchmarks = tuple(_benchmark(name, column) for name, column in values["columns"].items())
    return PublishedTable(
        values["model"], values["guide"], values["layer"], _source(values["source"]), benchmarks, rows
    )  # fmt: skip


def _benchmark(name: str, column: Mapping[str, Any]) -> Benchmark:
    task = column["task"]
    if column.get("relative"):
        return Benchmark(name, None, relative=True)
    if task is None:
        return Benchmark(name, None, why=column.get("why") or "eval.run has no such task")
    metric = column.get("metric") or TASKS[task].main
    return Benchmark(name, task, metric, column.get("times", 1.0), differs=column.get("differs", ""))


def _source(values: Mapping[str, Any]) -> str:
    """Paper, table, page and who quotes it, as far as they are known."""
    page = f"page {values['page']}" if values["page"] else ""
    quoted = f"as quoted in {values['quoted_in']}" if values.get("quoted_in") else ""
    return ", ".join(filter(None, (values["paper"], values["table"], page, quoted)))
