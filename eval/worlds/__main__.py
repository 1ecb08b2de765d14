"""Every method on both worlds with both pairs: even backgrounds and photographs, the bundled pair and the second one.

    python -m eval.worlds --out DIR                        the bundled pair
    python -m eval.worlds --out DIR --second WEIGHTS       both; WEIGHTS is what demos.tiny_vlm.second.train exported
    python -m eval.worlds --out DIR --limit 24             a quick look
    torchrun --nproc-per-node 2 -m eval.worlds ...         on two cores, each with half of the questions

A killed run goes on where it was. 1,000 questions in each cell at 14 x 14 visual tokens, 300 at 28 x 28, which only the
second pair reads. Each cell is a folder of DIR with records and tables as `eval.grid` writes them; `counting.json` says
by how much the large model counts three to six better than the small one, questions of one scene taken together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmprune.harness.models import quiet
from vlmprune.harness.record import good_lines
from vlmprune.harness.stats import Interval, interval

from . import grid, tables
from .exits import Arguments, ended
from .record import write_json
from .run import evaluate
from .settings import SMALL, Settings
from .tasks.load import load
from .tasks.registry import TASKS

QUESTIONS = {"scenes": 1000, "photographs": 1000, "scenes-wide": 300, "photographs-wide": 300}
HIGH = ("3", "4", "5", "6")  # the counts that take counting


@dataclass(frozen=True)
class Cell:
    """A pair on a world: where its large and small model lie, None for the bundled ones."""

    pair: str
    task: str
    model: Path | None
    guide: Path | None

    def settings(self, out: Path, limit: int | None, batch_size: int) -> Settings:
        """The grid's methods and budgets with this pair."""
        questions = min(QUESTIONS[self.task], limit or QUESTIONS[self.task])
        made = grid.settings(out / self.pair, questions, batch_size, (self.task,))
        model, guide = (None if path is None else str(path) for path in (self.model, self.guide))
        return replace(made, model=model, guide=guide)


def cells(second: Path | None) -> Iterator[Cell]:
    """In the order in which they run."""
    for task in ("scenes", "photographs"):
        yield Cell("bundled", task, None, None)
    if second is not None:
        for canvas, tasks in (("112", ("scenes", "photographs")), ("224", ("scenes-wide", "photographs-wide"))):
            for task in tasks:
                yield Cell("second", task, second / canvas / "large", second / canvas / "small")


def counting_gap(settings: Settings) -> dict[str, Any]:
    """How many of the counts of three to six either model gets right, and the difference with its interval."""
    (task,) = settings.tasks
    truth = {
        sample.id: sample.truth for sample in load(TASKS[task](), Path(settings.data), limit=settings.limit).samples
    }
    right: dict[str, dict[str, float]] = {}
    scenes: dict[str, str] = {}
    for method in ("none", SMALL):
        right[method] = {}
        for line in good_lines(Path(settings.out) / task / method / "samples.jsonl"):
            if line["meta"]["family"] == "count" and truth.get(line["id"]) in HIGH:
                right[method][line["id"]] = line["score"]
                scenes[line["id"]] = line["group"]
    asked = sorted(right["none"].keys() & right[SMALL].keys())
    if len({scenes[one] for one in asked}) < 2:
        return {"questions": len(asked)}  # no interval without two scenes
    large, small = ([right[method][one] for one in asked] for method in ("none", SMALL))
    found: Interval = interval((large, None), (small, None), [scenes[one] for one in asked])
    accuracy = {"large": sum(large) / len(asked), "small": sum(small) / len(asked)}
    return {"questions": len(asked), **accuracy, "difference": found.record()}


def main(arguments: list[str] | None = None) -> int:
    """Run every cell; bad input is one line on stderr and status 2."""
    return ended(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Arguments(
        prog="python -m eval.worlds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where records and tables go")
    parser.add_argument("--second", type=Path, help="the second pair's exported weights")
    parser.add_argument("--limit", type=int, help="only the first N questions of a cell")
    parser.add_argument("--batch-size", type=int, default=48, help="questions at a time")
    args = parser.parse_args(arguments)
    gaps: dict[str, Any] = {}
    for cell in cells(args.second):
        settings = cell.settings(args.out, args.limit, args.batch_size)
        with quiet():
            evaluate(settings)
        if not settings.finished():
            return 0  # another process has questions left, and will write the tables
        gaps[f"{cell.pair}/{cell.task}"] = counting_gap(settings)
        write_json(args.out / "counting.json", gaps)
    for pair in dict.fromkeys(cell.pair for cell in cells(args.second)):
        tables.main([str(args.out / pair)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
