"""What a stage is: groups of points, each group in a process of its own.

A group that hangs, crashes or breaks the device takes no other along, and groups of checks run side by side, since
compiling kernels takes longer than running them.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a point came to: `absent`: this device or installation cannot run it; `cut`: the time was over before.
PASSED, FAILED, MEASURED, ABSENT, CUT = "passed", "failed", "measured", "absent", "cut"
ROOT = Path(__file__).parents[2]

Point = dict[str, Any]
Emit = Callable[[Point], None]


@dataclass(frozen=True)
class StageSetting:
    """How a group runs. `tiny`: small shapes on the CPU. `deadline`: when the stage ends, by `time.monotonic`."""

    tiny: bool
    deadline: float
    seed: int = 0

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class GpuStage:
    """Part of the run, with a file of its own.

    Args:
        limit: seconds; what earlier stages left is added. groups: their names, most telling first. run: does one of
            them, and emits every point (a dict with `point` and `status`; the same `point` again replaces it).
        side_by_side: how many groups at most. whole: whether a point that was cut fails the stage.
    """

    name: str
    limit: float
    groups: Callable[[bool], Sequence[str]]
    run: Callable[[str, StageSetting, Emit], None]
    side_by_side: int = 1
    whole: bool = True


def short(error: BaseException, frames: int = 3) -> str:
    """An error with its last frames in one text, without this machine's paths."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-frames:]]
    text = f"{type(error).__name__}: {str(error)[:400]} [{' > '.join(where)}]"
    return without_paths(text)


def without_paths(text: str) -> str:
    """Paths below the checkout become relative to it; of all others the last part stays."""
    return re.sub(r"(?<![\w.])(?:/[\w.@+~-]+)+/([\w.@+-]+)", r"\1", text.replace(f"{ROOT}/", "./"))
