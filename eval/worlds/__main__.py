"""Every method on both worlds, even backgrounds and photographs, with both pairs, and on clips with a pair for them.

    python -m eval.worlds --out DIR                        run (or go on), write tables and pictures
    python -m eval.worlds --out DIR --second WEIGHTS       another second pair, exported by its training
    python -m eval.worlds --out DIR --clips WEIGHTS        another pair for clips
    python -m eval.worlds --out DIR --limit 24             a quick look
    torchrun --nproc-per-node 2 -m eval.worlds ...         on two cores, each with half of the questions

A killed run goes on where it was. 1,000 questions in each cell at 14 x 14 visual tokens and on clips, 300 at 28 x 28,
which only the second pair reads. Each cell is a folder of DIR with records and tables as `eval.grid` writes them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import vlmprune

from .. import grid, tables
from ..exits import Arguments, ended
from ..settings import ROWS, VIDEO_BASELINES, Settings, registered
from .page import PAIRS

QUESTIONS = {"scenes": 1000, "photographs": 1000, "scenes-wide": 300, "photographs-wide": 300, "clips": 1000}
# From the checkout's root, since records name them.
SECOND, CLIPS = Path("demos/tiny_vlm/second/weights"), Path("vlmprune/tiny/clips")


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
        methods = (*made.methods, *VIDEO_BASELINES)
        if self.pair == "clips":  # their tokens are pooled from several patches each
            methods = tuple(name for name in methods if name in ROWS or not reads_tower(name))
        return replace(made, model=model, guide=guide, methods=methods)


def reads_tower(name: str) -> bool:
    """Whether a method ranks tokens by what the vision tower says of each, which needs a token to be one patch."""
    method = vlmprune.list_methods()[registered(name)]
    return issubclass(method, vlmprune.Pruner) and method.reads_vision


def cells(second: Path, clips: Path) -> Iterator[Cell]:
    """In the order in which they run."""
    for task in ("scenes", "photographs"):
        yield Cell("bundled", task, None, None)
    for canvas, tasks in (("112", ("scenes", "photographs")), ("224", ("scenes-wide", "photographs-wide"))):
        for task in tasks:
            yield Cell("second", task, second / canvas / "large", second / canvas / "small")
    yield Cell("clips", "clips", clips / "large", clips / "small")


def main(arguments: list[str] | None = None) -> int:
    """Run every cell; bad input is one line on stderr and status 2."""
    return ended(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Arguments(
        prog="python -m eval.worlds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where records and tables go")
    parser.add_argument(
        "--second", type=Path, default=SECOND, metavar="WEIGHTS", help="the second pair's exported weights"
    )
    parser.add_argument("--clips", type=Path, default=CLIPS, metavar="WEIGHTS", help="the pair for clips, as exported")
    parser.add_argument("--pair", nargs="+", default=list(PAIRS), choices=PAIRS, help="only these")
    parser.add_argument("--limit", type=int, help="only the first N questions of a cell")
    parser.add_argument("--batch-size", type=int, default=48, help="questions at a time")
    args = parser.parse_args(arguments)
    asked = [cell for cell in cells(args.second, args.clips) if cell.pair in args.pair]
    grids = [cell.settings(args.out, args.limit, args.batch_size) for cell in asked]
    if not grid.finished(grids):
        return 0  # another process has questions left, and will write the tables
    return max(tables.main([str(args.out / pair)]) for pair in dict.fromkeys(cell.pair for cell in asked))


if __name__ == "__main__":
    sys.exit(main())
