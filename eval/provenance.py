"""Where a committed number comes from."""

from __future__ import annotations

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
