"""What importing vlmprune costs, beside the same parts of PyTorch and transformers without it.

Every run is a fresh process, in turns; processor seconds of the whole process, medians. `import vlmprune` loads
neither; "its parts" are all modules of PyTorch and transformers that the first use of `vlmprune.wrap` loads, imported
in the same order. The command line's help is set against the libraries that print it.

    python -m eval.speed.imports --out eval/speed/results/imports.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from eval.provenance import provenance, write_record

LIBRARIES = ("torch", "transformers")
LOADED = f"import vlmprune, sys; vlmprune.wrap; print(*(m for m in sys.modules if m.partition('.')[0] in {LIBRARIES}))"
PARTS = """
import contextlib, importlib, sys
for name in sys.argv[1:]:
    with contextlib.suppress(ImportError):  # some are made, not imported: torch.ops, torch.classes
        importlib.import_module(name)
"""


def processor_seconds(command: list[str]) -> float:
    """User and system time of one process."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime


def measure(rounds: int) -> dict[str, Any]:
    """Medians, and those of vlmprune as fractions of its parts."""
    python = [sys.executable, "-c"]
    parts = subprocess.run([*python, LOADED], capture_output=True, text=True, check=True).stdout.split()
    commands = {
        "import torch": [*python, "import torch"],
        "its parts": [*python, PARTS, *parts],
        "import vlmprune": [*python, "import vlmprune"],
        "vlmprune.wrap": [*python, "import vlmprune; vlmprune.wrap"],
        "import typer, rich": [*python, "import typer, rich"],
        "vlmprune --help": [sys.executable, "-m", "vlmprune", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            used = processor_seconds(command)
            if turn:  # the first fills the disk's cache and writes bytecode
                seconds[name].append(used)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "rounds": rounds,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "vlmprune.wrap over its parts": round(medians["vlmprune.wrap"] / medians["its parts"], 3),
        "limit": 1.1,
        "limit of --help": round(1.2 * medians["import typer, rich"] + 0.3, 3),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record = {**measure(args.rounds), "provenance": provenance()}
    print(json.dumps(record, indent=1))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
