"""`python -m tests.mutate [--only TEXT] [--out FILE]`: apply each mutation to a copy of the checkout and run its tests.

A mutation is killed where a test fails, and survives where all pass. Anything else (a test that cannot be collected) is
an error: such a mutation says nothing about the tests. The exit status is 1 where one survived or was in error.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from eval.provenance import provenance
from tests.support.source import definition

from .mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
RECORD = Path(__file__).parent / "record.json"
WORKERS = 2
FAILED, PASSED = 1, 0  # exit statuses of pytest


def place(mutation: Mutation, root: Path = ROOT) -> tuple[Path, int, int]:
    """The file of a mutation, and where its function's source begins and ends in the text.

    Raises:
        LookupError: the function is gone, or `old` does not occur in it exactly once.
    """
    module, _, qualified = mutation.function.partition(":")
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    text = path.read_text()
    source = ast.get_source_segment(text, definition(ast.parse(text), qualified)) or ""
    if (times := source.count(mutation.old)) != 1:
        raise LookupError(f"{mutation.old!r} occurs {times} times in {mutation.function}, not once")
    start = text.index(source)
    return path, start, start + len(source)


def run(mutation: Mutation, copy: Path) -> str:
    """What became of a mutation in a copy of the checkout: killed, survived or error."""
    path, start, end = place(mutation, copy)
    text = path.read_text()
    path.write_text(text[:start] + text[start:end].replace(mutation.old, mutation.new) + text[end:])
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutation.tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text)
    if done.returncode == FAILED and " failed" in done.stdout.splitlines()[-1]:
        return "killed"
    return "survived" if done.returncode == PASSED else "error"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutations whose name holds this text")
    parser.add_argument("--out", type=Path, help="where the record goes (a run of all: tests/mutate/record.json)")
    arguments = parser.parse_args()
    chosen = [one for one in MUTATIONS if arguments.only in one.name]
    head = provenance()
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for worker in range(WORKERS):
            copy = Path(folder) / str(worker)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__"))
            copies.put(copy)

        def one(mutation: Mutation) -> tuple[Mutation, str]:
            copy = copies.get()
            try:
                return mutation, run(mutation, copy)
            finally:
                copies.put(copy)

        results = {}
        with ThreadPoolExecutor(WORKERS) as pool:
            for mutation, outcome in pool.map(one, chosen):
                explained = f" ({mutation.equal})" if mutation.equal else ""
                print(f"{outcome:9}{mutation.name}{explained}", flush=True)
                results[mutation.name] = outcome
    counts = {outcome: list(results.values()).count(outcome) for outcome in ("killed", "survived", "error")}
    if (out := arguments.out or (None if arguments.only else RECORD)) is not None:
        out.write_text(json.dumps({**head, "counts": counts, "mutations": results}, indent=1) + "\n")
    print(counts)
    explained = {mutation.name for mutation in chosen if mutation.equal}
    return int(any(outcome != "killed" and name not in explained for name, outcome in results.items()))


if __name__ == "__main__":
    sys.exit(main())
