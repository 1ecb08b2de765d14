"""`python -m tests.full NAME`: run a full grid, going on where a cut run was, and write its record.

A record (tests/full/records/NAME.json) says when, at which commit and with which versions the grid ran, how many tests
passed, and which methods ran on which families. tests/test_full_records.py fails where a family or method has none.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import subprocess
import sys
from typing import Any

import vlmprune
from eval.provenance import write_record
from tests.full import matrix
from tests.full.grids import GRIDS, RECORDS, ROOT, environment_of
from tests.full.journal import VARIABLE, read
from tests.support.grid import VARIABLE as GRID

WORK = ROOT / "runs" / "full"


def summary(name: str, head: dict[str, Any], tests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record of a complete journal; what tests themselves registered is left out."""
    families, methods = collections.defaultdict(list), collections.defaultdict(list)
    for line in tests.values():
        if line["outcome"] == "passed":
            for family, method in line["wrapped"]:
                if family in vlmprune.list_families() and method in vlmprune.list_methods():
                    families[family].append(method)
                    methods[method].append(family)
    outcomes = collections.Counter(line["outcome"] for line in tests.values())
    return {
        "grid": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **{key: head[key] for key in ("commit", "dirty", "transformers", "torch", "machine")},
        "tests": {outcome: outcomes[outcome] for outcome in ("passed", "failed", "skipped")},
        "cpu_minutes": round(sum(line["cpu"] for line in tests.values()) / 60, 1),
        "failed": sorted(test for test, line in tests.items() if line["outcome"] == "failed"),
        "families": {one: dict(sorted(collections.Counter(ran).items())) for one, ran in sorted(families.items())},
        "methods": {one: dict(sorted(collections.Counter(ran).items())) for one, ran in sorted(methods.items())},
    }


def run(name: str, short: bool, processes: int, more: list[str]) -> int:
    """Run a grid's tests in a process of their own; pytest's exit status."""
    grid = GRIDS[name]
    journal = WORK / f"{name}{'-short' if short else ''}.jsonl"
    environment = environment_of(grid, WORK / "packages" / name) | {
        VARIABLE: str(journal),
        GRID: "short" if short else "full",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.full.journal", "-m", "not vllm", *grid.tests, *more]
    if processes > 1:
        command += ["-n", str(processes)]
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status not in (0, 1, 5) or short or more:  # 5: nothing was left to run
        return status
    head, tests = read(journal)
    record = summary(name, head, tests)
    write_record(record, RECORDS / f"{name}.json")
    print(f"{name}: {record['tests']}, record in {(RECORDS / f'{name}.json').relative_to(ROOT)}")
    return 1 if record["failed"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.full", description=__doc__)
    parser.add_argument("name", nargs="?", choices=[*GRIDS, matrix.NAME])
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--short", action="store_true", help="each family once, as by default; no record")
    parser.add_argument("-n", "--processes", type=int, default=min(2, os.cpu_count() or 1))
    chosen, more = parser.parse_known_args()
    if chosen.list or chosen.name is None:
        for name, grid in GRIDS.items():
            print(f"{name:10} {grid.says}")
        print(f"{matrix.NAME:10} {matrix.SAYS}")
        return 0
    if chosen.name == matrix.NAME:
        return matrix.run(more)
    return run(chosen.name, chosen.short, chosen.processes, more)


if __name__ == "__main__":
    sys.exit(main())
