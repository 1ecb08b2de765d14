"""Every method at every budget on our scenes and on easy-VQA's test split, with the bundled pair.

    python -m eval.grid --out eval/results            run (or go on), write tables and pictures
    python -m eval.grid --out /tmp/try --limit 24     a quick look
    torchrun --nproc-per-node 2 -m eval.grid ...      on two cores, each with half of the questions

Every method answers a batch in turn, and what they have in common (the vision tower's pass, the guide's run) is done
once for all and charged to each. Summaries and tables are committed; the lines with every answer stay where they were
made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import vlmprune
from vlmprune.harness.models import quiet

from . import tables
from .exits import Arguments, ended
from .run import evaluate
from .settings import BASELINES, DIVERSE, DIVERSE_EXIT, SGL_EXIT, Settings

KEEPS = ("0.18", "0.09", "0.05")
QUESTIONS = {"scenes": 2112, "easy-vqa": 1056}  # all of the first task, of easy-VQA's 9,673 those of 114 images


def settings(out: Path, limit: int | None, batch_size: int, names: tuple[str, ...]) -> Settings:
    """The grid: the baselines, every registered method, and SGL with exits, with diversity and with both.

    Not those that act on the cache: the answers are one token, which comes from the prompt.
    """
    registered = (
        name
        for name, method in vlmprune.list_methods().items()
        if name not in BASELINES and not issubclass(method, vlmprune.CacheMethod)
    )
    methods = (*BASELINES, *registered, SGL_EXIT, DIVERSE, DIVERSE_EXIT)
    return Settings(
        tasks=names, methods=methods, keeps=KEEPS, out=str(out), limit=limit, batch_size=batch_size, share=True
    )


def finished(grids: Sequence[Settings]) -> bool:
    """Run every grid, or go on with it; whether all of it is done, or another process has questions left."""
    with quiet():
        for grid in grids:
            evaluate(grid)
    return all(grid.finished() for grid in grids)


def main(arguments: list[str] | None = None) -> int:
    """Run the grid and write what comes of it; bad input is one line on stderr and status 2."""
    return ended(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Arguments(
        prog="python -m eval.grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where records and tables go")
    parser.add_argument("--task", nargs="+", default=list(QUESTIONS), choices=QUESTIONS, help="only these")
    parser.add_argument("--limit", type=int, help="only the first N questions of a task")
    parser.add_argument("--batch-size", type=int, default=48, help="questions at a time")
    args = parser.parse_args(arguments)
    grids = [settings(args.out, args.limit or QUESTIONS[name], args.batch_size, (name,)) for name in args.task]
    if not finished(grids):
        return 0  # another process has questions left, and will write the tables
    return tables.main([str(args.out)])


if __name__ == "__main__":
    sys.exit(main())
