"""Which tests each full grid runs, and with what around them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDS = Path(__file__).parent / "records"
OLDEST_PINS = Path(__file__).parent / "oldest.txt"


@dataclass(frozen=True)
class Grid:
    """A set of tests: `says` what it covers, `tests` are paths for pytest, `environment` is set for them."""

    says: str
    tests: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    pins: Path | None = None  # packages that replace those of this environment


# Without test_generic.py: every type without an adapter is a matter of the methods' grid.
_KV = tuple(f"tests/methods/kv/test_{name}.py" for name in ("exact", "choice", "cache", "delta", "quest", "by_head"))
GRIDS = {
    "families": Grid(
        "every family x attention x layer x batch: pruned equals masked, in every way to generate, and with a guide",
        (
            "tests/test_conformance.py",
            "tests/test_generation.py",
            "tests/test_traps.py",
            "tests/test_isolation.py",
            "tests/test_support.py",
            "tests/test_report.py",
            "tests/families",
            "tests/guide",
            "tests/captioner/test_sampling.py",
        ),
    ),
    "methods": Grid(
        "every method against its naive reference, on every family that it fits",
        (
            "tests/methods",
            "tests/attention",
            "tests/ops",
            "tests/test_var_act.py",
            "tests/test_find_sinks.py",
            "tests/test_sinks_and_pruners.py",
            "tests/test_waits.py",
            "tests/test_compile.py",
        ),
    ),
    "video": Grid(
        "every family that takes videos x attention x layer x batch: pruned equals masked, in turns and with a guide",
        (
            "tests/test_videos.py",
            "tests/test_video_methods.py",
            "tests/guide/test_guided_videos.py",
            "tests/flow/test_frames.py",
        ),
    ),
    "kv": Grid(
        "caches cut after the prompt: every method against one uncached pass with a mask per layer and head", _KV
    ),
    "kv-oldest": Grid("the same with the oldest transformers that is supported", _KV, pins=OLDEST_PINS),
    "evaluation": Grid(
        "evaluation, captions and command line, with every engine and batch size",
        ("tests/eval", "tests/captioner", "tests/apps/cli", "tests/integrations", "tests/accounting"),
    ),
    "oldest": Grid(
        "families, methods and guides with the oldest transformers that is supported",
        (
            "tests/test_conformance.py",
            "tests/test_generation.py",
            "tests/test_var_act.py",
            "tests/guide",
            "tests/methods",
        ),
        pins=OLDEST_PINS,
    ),
    "serving": Grid(
        "the proxy before an engine of the tests: many requests at once, large pictures, clients that hang up",
        ("tests/serving",),
    ),
    "browser": Grid(
        "the demo in a real browser: every state at two widths in light and dark, two people at once for longer",
        ("tests/apps/demo",),
        {"VLMPRUNE_REQUIRE_BROWSER": "1"},
    ),
}


def environment_of(grid: Grid, folder: Path) -> dict[str, str]:
    """The environment of a grid's tests; its pinned packages are installed into `folder` if they are not there yet."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", **grid.environment}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    if grid.pins is not None:
        stamp = folder / grid.pins.name
        if not stamp.exists() or stamp.read_text() != grid.pins.read_text():
            # Without their dependencies: torch and the rest are those of this environment, which is what saves minutes.
            command = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--no-deps", "--target", str(folder)]
            subprocess.run([*command, "-r", str(grid.pins)], check=True)
            stamp.write_text(grid.pins.read_text())
        paths.insert(0, str(folder))
    return found | {"PYTHONPATH": os.pathsep.join(paths)}
