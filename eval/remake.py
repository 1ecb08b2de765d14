"""Measure everything about our own pairs anew, in order; a killed run goes on where it was.

    python -m eval.remake choices --work DIR     what is chosen on validation scenes; look at it, commit it
    python -m eval.remake tables --work DIR      what is measured on test scenes, then every page

DIR lies outside of the checkout, so that records say a clean tree, and belongs to one commit. Steps run in turn, the
clock last; finished records are copied into the checkout at the end. `DIR/minutes.json` has what each took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError
from vlmprune.harness.format import note

from .exits import BAD_INPUT
from .provenance import ROOT, provenance
from .record import write_json


@dataclass(frozen=True)
class Step:
    """One command; `{out}` is its record in the work folder, `{records}` what it goes on from.

    `to`: where the record belongs in the checkout, "" where the command prints what a person enters.
    """

    name: str
    command: str
    to: str = ""
    processes: int = 1

    def arguments(self, work: Path) -> list[str]:
        """What is run."""
        out = work / self.name / Path(self.to).name if self.to else work / self.name
        words = [word.format(out=out, records=work / f"{self.name}-records") for word in self.command.split()]
        many = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.processes)]
        return [sys.executable, *(many if self.processes > 1 else []), "-m", *words]


STEPS = {
    "choices": (
        Step("calibration", "eval.sgl.calibrate --out {out}", "eval/sgl/results/calibration.json"),
        Step(
            "fastv",
            "eval.sgl.study --choose fastv --records {records} --out {out}",
            "eval/sgl/results/fastv_layers.json",
            2,
        ),
        Step(
            "diversity",
            "eval.sgl.study --choose diversity --records {records} --out {out}",
            "eval/sgl/results/diversity.json",
            2,
        ),
        Step("top_p", "eval.sgl.top_p --out {out}", "eval/sgl/results/top_p.json"),
        Step("tune", "eval.captions.tune"),
    ),
    "tables": (
        Step("accuracy", "demos.tiny_vlm.evaluate --out {out}", "demos/tiny_vlm/results/accuracy.json"),
        Step("grid", "eval.grid --out {out}", "eval/results", 2),
        Step("second", "demos.tiny_vlm.second.evaluate --out {out}", "demos/tiny_vlm/results/second.json"),
        Step("clips", "demos.tiny_vlm.video.evaluate --out {out}", "demos/tiny_vlm/results/clips.json"),
        Step("worlds", "eval.worlds --out {out}", "eval/worlds/results", 2),
        Step("study", "eval.sgl.study --records {records} --out {out}", "eval/sgl/results/study.json", 2),
        Step(
            "captions",
            "eval.captions.run --scenes 300 --pruned-scenes 48 --start 10000 --records {records} --out {out}",
            "eval/captions/results/scenes.json",
        ),
        Step("kv", "eval.kv.run --records {records} --out {out}", "eval/kv/results/scenes.json"),
        Step("sinks", "eval.sinks_study --records {records} --out {out}", "eval/results/sinks_study.json"),
        Step("clock", "eval.speed.sgl --rounds 5 --prompts 3 --out {out}", "eval/speed/results/sgl.json"),
    ),
}


def run_steps(steps: Sequence[Step], work: Path, run: Callable[[list[str]], int], commit: str) -> dict[str, float]:
    """Run what is not finished; the minutes of every step, those before a kill included.

    Raises:
        VlmpruneError: the folder belongs to another commit, or a step failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    path = work / "minutes.json"
    state: dict[str, Any] = {"commit": commit, "done": [], "minutes": {}}
    if path.exists():
        state = json.loads(path.read_text())
    if state["commit"] != commit:
        raise VlmpruneError(
            f"The folder {str(work)!r} holds records of commit {state['commit']!r}, not {commit!r}; "
            "give another --work."
        )
    for step in steps:
        if step.name in state["done"]:
            continue
        if step.to:
            (work / step.name).mkdir(exist_ok=True)
        start, code = time.monotonic(), -1
        try:
            code = run(step.arguments(work))
        finally:
            spent = (time.monotonic() - start) / 60
            state["minutes"][step.name] = round(state["minutes"].get(step.name, 0.0) + spent, 2)
            state["done"] += [step.name] if code == 0 else []
            write_json(path, state)
        if code:
            raise VlmpruneError(f"The step {step.name!r} failed with status {code}; see above, then run this again.")
        note(f"{step.name}: {state['minutes'][step.name]:.1f} min")
    return dict(state["minutes"])


def copy(step: Step, work: Path) -> None:
    """A step's record into the checkout; of the grid what is committed, not the lines with every answer.

    Runs of the grid that were not measured again go: they would stand in one table with others of another commit.
    """
    if not step.to:
        return
    for old in (ROOT / step.to).rglob("summary.json"):
        if not (work / step.name / Path(step.to).name / old.relative_to(ROOT / step.to)).exists():
            shutil.rmtree(old.parent)
    for file in sorted((work / step.name).rglob("*")):
        place = file.relative_to(work / step.name / (Path(step.to).name if (ROOT / step.to).is_dir() else ""))
        target = (ROOT / step.to if (ROOT / step.to).is_dir() else (ROOT / step.to).parent) / place
        if file.is_file() and not file.name.startswith((".", "samples")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; what failed is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.remake", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STEPS)
    parser.add_argument("--work", type=Path, required=True, help="a folder outside of the checkout")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these")
    args = parser.parse_args(arguments)
    steps = [step for step in STEPS[args.stage] if not args.only or step.name in args.only]
    try:
        if args.work.resolve().is_relative_to(ROOT.resolve()):
            raise VlmpruneError(f"--work {str(args.work)!r} lies in the checkout; give a folder outside of it.")
        work = args.work.resolve() / args.stage
        about = provenance()
        if about["dirty"]:
            note("The tree has changes, and every record will say so.")
        run_steps(steps, work, lambda words: subprocess.run(words, cwd=ROOT, check=False).returncode, about["commit"])
    except VlmpruneError as error:
        note(str(error))
        return BAD_INPUT
    for step in steps:
        copy(step, work)
    return subprocess.run([sys.executable, "-m", "eval.pages"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
