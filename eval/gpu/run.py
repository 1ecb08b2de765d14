"""The stages one after the other, each with its time, and the summary of their records."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from eval.provenance import provenance
from vlmprune.harness.record import write_text
from vlmprune.ops.dispatch import runs_triton

from . import bandwidth, conformance, end_to_end, graphs, kernels
from .measure import about_device
from .processes import run_stage
from .record import StageRecord
from .stage import CUT, FAILED, MEASURED, Emit, GpuStage, Point, StageSetting

MODULES: tuple[Any, ...] = (kernels, conformance, graphs, end_to_end, bandwidth)  # most telling first
STAGES: dict[str, GpuStage] = {module.STAGE.name: module.STAGE for module in MODULES}
HEADLINES: dict[str, Callable[[Sequence[Point]], list[str]]] = {m.STAGE.name: m.headlines for m in MODULES}


def about(group: str, setting: StageSetting, emit: Emit) -> None:
    """Provenance of the run, asked for in a process of its own: it touches the GPU."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "absent"
    facts = {
        **about_device(setting.device), "seed": setting.seed, "tiny": setting.tiny, "triton": triton,
        "kernels": "triton" if runs_triton(torch.zeros(1, device=setting.device)) else "torch",
        "python": sys.version.split()[0], "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    emit({"point": "about", "status": MEASURED, **provenance(**facts)})


ABOUT = GpuStage("about", 30, lambda _: ["about"], about)


def stage_of(name: str) -> GpuStage:
    """A stage by its name, the one before them all too."""
    return {**STAGES, ABOUT.name: ABOUT}[name]


def run_stages(names: Sequence[str], out: Path, *, tiny: bool, ends: float, scale: float) -> int:
    """Run them in order; what one leaves of its time goes to the next. 1 where one failed."""
    facts: list[Point] = []
    run_stage(ABOUT, StageSetting(tiny, time.monotonic() + ABOUT.limit * scale), facts.append)
    known = {name: value for name, value in facts[0].items() if name not in ("group", "point", "status")}
    if facts[0]["status"] != MEASURED:
        print(f"eval.gpu: there is no GPU to use ({facts[0]['error']}); --tiny runs on a CPU", file=sys.stderr)
        return 2
    outcomes: dict[str, str] = {}
    for number, name in enumerate(names):
        later = sum(STAGES[one].limit * scale for one in names[number + 1 :])
        record = StageRecord(STAGES[name], out, known)
        try:
            run_stage(STAGES[name], StageSetting(tiny, ends - later), record.take)
        except Exception as error:  # the stages after it have a right to their time
            record.take({"group": "-", "point": "stage", "status": FAILED, "error": f"{type(error).__name__}: {error}"})
        outcomes[name] = record.finish()
        print(f"{name}: {outcomes[name]} after {time.monotonic() - record.began:.0f} s", flush=True)
    print(summary(out))
    return int(FAILED in outcomes.values())


def summary(folder: Path) -> str:
    """A table of the stages and the worst numbers of each, as Markdown; written beside the records too."""
    rows, lines = ["| stage | status | seconds | points |", "|---|---|---|---|"], []
    for name in STAGES:
        path = folder / f"{name}.json"
        if not path.is_file():
            rows.append(f"| {name} | no record | | |")
            continue
        record = json.loads(path.read_text())
        counts = ", ".join(f"{count} {status}" for status, count in record["counts"].items())
        rows.append(f"| {name} | {record['status']} | {record['seconds']} | {counts} |")
        lines += ["", f"{name}, on {record['about'].get('device')}:", *(f"- {one}" for one in headlines(name, record))]
    text = "\n".join([*rows, *lines])
    write_text(folder / "summary.md", text + "\n")
    return text


def headlines(name: str, record: dict[str, Any]) -> list[str]:
    """What a stage says in short, and every point that failed or was cut."""
    points = record["points"]
    bad = [
        f"{point['status'].upper()}: {point['group']}, {point['point']}: {point.get('error') or numbers_of(point)}"
        for point in points
        if point["status"] in (FAILED, CUT)
    ]
    return [*bad, *HEADLINES[name](points)]


def numbers_of(point: Point) -> str:
    """A failed check's numbers."""
    names = ("worst", "bound", "absolute", "of_allowed", "changes_logits_by")
    return ", ".join(f"{name} {point[name]:.2e}" for name in names if name in point)
