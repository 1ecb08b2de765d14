"""Where a committed number comes from, and how its record is written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

from vlmprune.accounting.hardware import machine

ROOT = Path(__file__).parents[1]


def provenance(**facts: Any) -> dict[str, Any]:
    """Commit, whether the tree was dirty, versions and machine, and the `facts` that only the caller knows.

    In a copy without git's folder the commit is "unknown", and so is whether it was changed.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    # A copy inside of another checkout is not of that one's commit.
    own = Path(git("rev-parse", "--show-toplevel") or "/").resolve() == ROOT.resolve()
    return {
        "commit": git("rev-parse", "HEAD") if own else "unknown",
        "dirty": bool(git("status", "--porcelain")) if own else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": machine(),
        **facts,
    }


def write_record(record: dict[str, Any], path: Path | None) -> None:
    """Write a record as JSON, its folder too where there is none; nowhere without a path."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
