"""Put the tables of the committed records into the pages that show them.

    python -m eval.pages            rewrite every marked table; prints the pages that changed
    python -m eval.pages --check    change nothing; status 1 where a page says something else than its record

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. So no number in a table is typed by hand; the
sentences around it are, and are read again whenever this prints a page's name.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demos.tiny_vlm import evaluate
from vlmprune.errors import VlmpruneError
from vlmprune.harness.format import note

from . import grid, sinks_study
from .captions import tables as captions
from .record import write_text
from .run import BAD_INPUT
from .sgl import tables as sgl
from .speed import sgl as speed

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)

_STUDY = "eval/sgl/results/study.json"
_CAPTIONS = "eval/captions/results/scenes.json"
# Page -> name of a table -> its record, and what makes it; a folder stands for the grid's summaries.
PAGES: dict[str, dict[str, tuple[str, Callable[[Any], str]]]] = {
    "README.md": {"scenes": ("eval/results", grid.readme_table)},
    "demos/tiny_vlm/README.md": {"accuracy": ("demos/tiny_vlm/results/accuracy.json", evaluate.table)},
    "eval/sgl/README.md": {
        "retention": (_STUDY, lambda record: sgl.table(record["rows"], "at_retention")),
        "entering": (_STUDY, lambda record: sgl.table(record["rows"], "at_entering")),
        "by-guide": (_STUDY, lambda record: sgl.by_guide(record["rows"])),
        "families": (_STUDY, lambda record: sgl.by_family(record["rows"])),
        "clock": ("eval/speed/results/sgl.json", speed.table),
    },
    "eval/captions/README.md": {
        "captions": (_CAPTIONS, lambda record: captions.table(record["rows"])),
        "captions-pruned": (_CAPTIONS, lambda record: captions.table(record["pruned"])),
    },
    "eval/sinks.md": {"sinks": ("eval/results/sinks_study.json", sinks_study.table)},
}


@functools.cache
def record(source: str) -> Any:
    """What a table is made of: a record's content, or the folder of the grid's summaries."""
    at = ROOT / source
    return at if at.is_dir() else json.loads(at.read_text())


def filled(page: str, text: str) -> str:
    """A page's text with its tables made anew from their records.

    Raises:
        VlmpruneError: the page marks other tables than those that can be made for it.
    """
    tables = PAGES[page]
    if sorted(name for _, name, _ in MARKED.findall(text)) != sorted(tables):
        raise VlmpruneError(f"{page} has to mark each of these tables once: {', '.join(tables)}.")

    def made(name: str) -> str:
        source, table = tables[name]
        return table(record(source))

    return MARKED.sub(lambda marks: f"{marks[1]}{made(marks[2])}\n{marks[3]}", text)


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check all pages; bad input is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, status 1 where a page is out of date")
    args = parser.parse_args(arguments)
    stale = 0
    try:
        for page in PAGES:
            shown = (ROOT / page).read_text()
            text = filled(page, shown)
            if text != shown:
                stale += 1
                print(page)
                if not args.check:
                    write_text(ROOT / page, text)
    except VlmpruneError as error:
        note(str(error))
        return BAD_INPUT
    return int(args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
