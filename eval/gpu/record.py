"""A stage's file: rewritten at once whenever points have come, so that a run cut short keeps what it has."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from vlmprune.harness.record import write_text

from .stage import CUT, FAILED, PASSED, GpuStage, Point

EVERY = 0.5  # seconds between two writes


class StageRecord:
    """Points of a stage in the order of their groups, and what they come to."""

    def __init__(self, stage: GpuStage, folder: Path, about: dict[str, Any]) -> None:
        self.stage, self.path, self.about = stage, folder / f"{stage.name}.json", about
        self.points: dict[tuple[str, str], Point] = {}
        self.began, self.written = time.monotonic(), 0.0

    def take(self, point: Point) -> None:
        """Add a point, or replace it."""
        self.points[point["group"], point["point"]] = point
        if time.monotonic() - self.written > EVERY:
            self.write("running")

    def finish(self) -> str:
        """Write the last time; returns how the stage ended."""
        status = outcome(self.stage, list(self.points.values()))
        self.write(status)
        return status

    def write(self, status: str) -> None:
        """Replace the file."""
        head = {
            "stage": self.stage.name,
            "status": status,
            "seconds": round(time.monotonic() - self.began, 1),
            "counts": dict(Counter(point["status"] for point in self.points.values())),
            "about": self.about,
        }
        fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        lines = ",\n ".join(json.dumps(point) for point in self.points.values())
        write_text(self.path, "{" + ",\n".join(fields) + ',\n"points": [\n ' + lines + "\n]}\n")
        self.written = time.monotonic()


def outcome(stage: GpuStage, points: list[Point]) -> str:
    """Failed where a point failed, where nothing came of the stage, or where checks were cut."""
    found = Counter(point["status"] for point in points)
    if found[FAILED] or not sum(n for status, n in found.items() if status != CUT):
        return FAILED
    if found[CUT]:
        return FAILED if stage.whole else CUT
    return PASSED
