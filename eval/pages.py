"""Put the tables of the committed records into the pages that show them.

    python -m eval.pages            rewrite every marked table; prints the pages that changed
    python -m eval.pages --check    change nothing; status 1 where a page says something else than its record

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`, sentences that quote numbers between
`<!-- text: NAME -->` and `<!-- end of text -->`. So no measured number on a page is typed by hand.
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
from demos.tiny_vlm.second import evaluate as second
from demos.tiny_vlm.video import evaluate as clips
from vlmprune.errors import VlmpruneError
from vlmprune.harness.record import write_text

from . import errors_page, families_page, gain, methods_page, results_page, sinks_study
from . import tables as all_tables
from .captions import tables as captions
from .exits import Arguments, ended
from .gpu import page as gpu
from .kv import tables as kv
from .serving import fleet, in_engine, turns
from .sgl import tables as sgl
from .speed import cache, sentences, video, video_scale
from .speed import sgl as speed
from .worlds import page as worlds

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- (table|text): (\S+) -->\n).*?(<!-- end of \2 -->)", flags=re.DOTALL)

_WHOLE = "all"  # a page without marks, which is made whole
_GRID = "eval/results"
_NONE = "eval"  # no record: computed from the source, or from sizes alone
_STUDY = "eval/sgl/results/study.json"
_CAPTIONS = "eval/captions/results/scenes.json"
_KV = "eval/kv/results/scenes.json"
_SINKS = "eval/results/sinks_study.json"
_PAIR = "demos/tiny_vlm/results/accuracy.json"
_SECOND = "demos/tiny_vlm/results/second.json"
_SPEED = "eval/speed/results"
_MATRIX = "tests/full/records/matrix.json"
# Page -> name of a table or text -> its record, and what makes it; a folder stands for the grid's summaries.
PAGES: dict[str, dict[str, tuple[str, Callable[[Any], str]]]] = {
    "README.md": {"gain": (_NONE, lambda _: gain.table()), "families": (_MATRIX, families_page.in_readme)},
    "docs/cache.md": {"kv": (_KV, kv.in_docs), "speed": (_NONE, lambda _: cache.in_docs())},
    "docs/captions.md": {"captions": (_CAPTIONS, captions.in_docs)},
    "docs/cost.md": {
        "overhead": (f"{_SPEED}/overhead.json", sentences.overhead),
        "imports": (f"{_SPEED}/imports.json", sentences.imports),
        "var": (f"{_SPEED}/var.json", sentences.var),
        "prefill": (f"{_SPEED}/prefill.json", sentences.prefill),
        "video": (_NONE, lambda _: video.in_docs()),
        "video-scale": (_NONE, lambda _: video_scale.in_docs()),
    },
    "docs/gpu.md": {
        "checks": (_NONE, lambda _: gpu.checks()),
        "found": (_NONE, lambda _: gpu.found()),
        "speed": (_NONE, lambda _: gpu.speed()),
        "kernels": (_NONE, lambda _: gpu.kernels()),
    },
    "docs/each_method.md": {_WHOLE: (_GRID, methods_page.page)},
    "docs/evaluation.md": {"which": (_GRID, results_page.in_docs)},
    "docs/limits.md": {"pair": (_PAIR, evaluate.in_docs)},
    "docs/troubleshooting.md": {_WHOLE: (_NONE, lambda _: errors_page.page())},
    "demos/tiny_vlm/README.md": {
        "accuracy": (_PAIR, evaluate.table),
        "gaps": (_PAIR, evaluate.findings),
        "second": (_SECOND, second.table),
        "second-gaps": (_SECOND, second.findings),
        "clips": ("demos/tiny_vlm/results/clips.json", clips.table),
    },
    "docs/families.md": {_WHOLE: (_MATRIX, families_page.page)},
    "docs/results.md": {_WHOLE: (_GRID, results_page.page)},
    "docs/worlds.md": {_WHOLE: ("eval/worlds/results", worlds.page)},
    "eval/results/tables.md": {_WHOLE: (_GRID, lambda folder: all_tables.markdown(all_tables.read(folder)))},
    "eval/serving/README.md": {
        "fleet": ("eval/speed/results/sgl.json", lambda _: fleet.table()),
        "in-engine": ("eval/serving/results/in_engine.json", in_engine.table),
        "turns": ("eval/serving/results/turns.json", turns.table),
        "turns-about": ("eval/serving/results/turns.json", turns.about),
    },
    "eval/sgl/README.md": {
        "measured": (_STUDY, sgl.measured),
        "retention": (_STUDY, lambda record: sgl.table(record, "at_retention")),
        "costs": (_STUDY, sgl.costs),
        "against-sgl": (_STUDY, sgl.against_sgl),
        "entering": (_STUDY, lambda record: sgl.table(record, "at_entering")),
        "threshold": ("eval/sgl/results/calibration.json", sgl.threshold),
        "findings": (_STUDY, sgl.findings),
        "by-guide": (_STUDY, sgl.by_guide),
        "wrong": (_STUDY, sgl.ranking_of_wrong),
        "families": (_STUDY, sgl.by_family),
        "clock": (f"{_SPEED}/sgl.json", speed.table),
        "seconds": (f"{_SPEED}/sgl.json", sgl.clock),
    },
    "eval/captions/README.md": {
        "captions": (_CAPTIONS, lambda record: captions.table(record["rows"])),
        "findings": (_CAPTIONS, captions.findings),
        "captions-pruned": (_CAPTIONS, lambda record: captions.table(record["pruned"])),
        "pruned-findings": (_CAPTIONS, captions.pruned_findings),
    },
    "eval/kv/README.md": {
        "verdict": (_KV, kv.verdict),
        "findings": (_KV, kv.findings),
        "captions": (_KV, lambda record: kv.table(record, "captions")),
        "second": (_KV, lambda record: kv.table(record, "second")),
        "needle": (_KV, lambda record: kv.table(record, "needle")),
        "about": (_KV, kv.about),
    },
    "eval/sinks.md": {
        "existence": (_SINKS, sinks_study.existence),
        "sinks": (_SINKS, sinks_study.table),
        "findings": (_SINKS, sinks_study.findings),
    },
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
    if _WHOLE in tables:
        return made_of(page, _WHOLE)
    if sorted(name for _, _, name, _ in MARKED.findall(text)) != sorted(tables):
        raise VlmpruneError(f"{page} has to mark each of these tables and texts once: {', '.join(tables)}.")
    return MARKED.sub(lambda marks: f"{marks[1]}{made_of(page, marks[3])}\n{marks[4]}", text)


def made_of(page: str, name: str) -> str:
    """A table or text, from its record."""
    source, make = PAGES[page][name]
    return make(record(source))


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check all pages; bad input is one line on stderr and status 2."""
    return ended(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = Arguments(
        prog="python -m eval.pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, status 1 where a page is out of date")
    args = parser.parse_args(arguments)
    stale = 0
    for page in PAGES:
        shown = (ROOT / page).read_text() if (ROOT / page).exists() else ""
        text = filled(page, shown)
        if text != shown:
            stale += 1
            print(page)
            if not args.check:
                write_text(ROOT / page, text)
    return int(args.check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
