"""Where a committed number comes from, and how its record is written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

from vlmprune.cli.measure import machine


def provenance(**facts: Any) -> dict[str, Any]:
    """Commit, whether the tree was dirty, versions and machine, and the `facts` that only the caller knows."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain")),
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
