"""The script for a GPU, in small on the CPU; and what becomes of groups that hang, crash or fail."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import eval.provenance
import vlmprune
from eval.gpu import __main__ as command
from eval.gpu import conformance, end_to_end, kernels
from eval.gpu.graphs import REPLAYS, STEPS
from eval.gpu.processes import DONE, run_stage
from eval.gpu.record import StageRecord, outcome
from eval.gpu.run import STAGES, summary
from eval.gpu.stage import ABSENT, CUT, FAILED, MEASURED, PASSED, Emit, GpuStage, Point, StageSetting, short
from tests.ops.cases import CASES, EXACT, SUMS, Work
from tests.support.grid import only_full

ROOT = Path(__file__).parents[2]
# What the machine with the GPU need not have: every package beside torch's, triton's and transformers' own.
ABSENT_THERE = (
    "_pytest", "accelerate", "click", "datasets", "fastapi", "gradio", "hypothesis", "jinja2", "matplotlib", "pandas",
    "peft", "psutil", "pygments", "pytest", "ray", "rich", "scipy", "skimage", "torchvision", "typer",
)  # fmt: skip
BARE = f"""
import importlib.abc, importlib.util, runpy, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT_THERE}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.partition(".")[0] in {ABSENT_THERE} else real(name, *a)
sys.meta_path.insert(0, Absent())
runpy.run_module("eval.gpu", run_name="__main__", alter_sys=True)
"""


def started(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, **options)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("gpu") / "records"
    return out, started("-c", BARE, "--tiny", "--out", str(out))


@only_full
def test_the_whole_script_runs_on_a_bare_installation(records: tuple[Path, Any]) -> None:
    out, done = records
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"{name}.json" for name in STAGES), "summary.md"])
    assert (out / "summary.md").read_text().strip() in done.stdout


@only_full
@pytest.mark.parametrize("stage", STAGES)
def test_every_record_says_where_it_comes_from(records: tuple[Path, Any], stage: str) -> None:
    text = (records[0] / f"{stage}.json").read_text()
    record = json.loads(text)
    assert record["status"] == PASSED
    assert len(record["points"]) >= 4
    assert {point["group"] for point in record["points"]} == set(STAGES[stage].groups(True))
    about = record["about"]
    assert {"commit", "dirty", "torch", "transformers", "triton", "python", "device", "seed", "date"} <= about.keys()
    assert not any(str(path) in text for path in (ROOT, Path.home(), Path(sys.prefix)))


@only_full
def test_the_checks_are_there(records: tuple[Path, Any]) -> None:
    points = {name: json.loads((records[0] / f"{name}.json").read_text())["points"] for name in STAGES}
    assert {point["kernel"] for point in points["kernels"]} == {case.kernel for case in CASES}
    checked = [point for point in points["conformance"] if point["status"] == PASSED]
    assert all(point["worst"] <= point["bound"] and point["reason"] for point in checked)
    assert {point["dtype"] for point in checked} == {"fp32", "bf16"}
    assert any("VAR" in point["point"] for point in checked)
    replayed = {point["point"]: point["equal"] for point in points["graphs"]}
    assert replayed == {name: [True] * REPLAYS for name in STEPS}
    timed = {point["point"].partition(": ")[2]: point for point in points["end_to_end"] if "milliseconds" in point}
    names = {"keep 25%, layer 0", "keep 100%, layer 2", "keep V - 1, layer 0", "VAR", "SGL, 8 guide steps"}
    assert names <= timed.keys()
    quarter = timed["keep 25%, layer 0"]
    assert quarter["kept_tokens"] * 4 == quarter["visual_tokens"]
    assert quarter["ideal_faster"] == pytest.approx(quarter["prefill_flops_full"] / quarter["prefill_flops"], abs=1e-4)
    assert "visual sinks in layers" in timed["VAR"]["notes"][0]
    assert any("of_copy_bandwidth" in point for point in points["bandwidth"])


@only_full
def test_a_group_runs_in_a_python_of_its_own() -> None:
    """Where something imported has looked for a GPU, a forked process cannot use it, and starts Python anew."""
    source, sink = os.pipe()
    setting = {"tiny": True, "deadline": time.monotonic() + 600, "seed": 0}
    order = json.dumps({"stage": "about", "group": "about", "setting": setting, "sink": sink})
    done = started("-m", "eval.gpu", "--order", order, pass_fds=[sink])
    os.close(sink)
    with os.fdopen(source) as file:
        about, end = map(json.loads, file)
    assert done.returncode == 0, done.stderr
    assert (about["status"], about["tiny"], end) == (MEASURED, True, DONE)


# --- what goes wrong -----------------------------------------------------------------------------------------------


Run = Callable[[str, StageSetting, Emit], None]


def outcomes(run: Run, groups: Sequence[str], seconds: float = 300) -> dict[str, Point]:
    """The points of a stage's groups."""
    points: list[Point] = []
    stage = GpuStage("made", seconds, lambda tiny: groups, run)
    run_stage(stage, StageSetting(True, time.monotonic() + seconds), points.append)
    return {f"{point['group']}: {point['point']}": point for point in points}


def test_a_group_that_crashes_or_raises_takes_no_other_along() -> None:
    def run(group: str, setting: StageSetting, emit: Emit) -> None:
        emit({"point": "before", "status": PASSED})
        if group == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if group == "raises":
            raise ValueError(f"in {ROOT}/vlmprune and /elsewhere/lib/file.so")
        emit({"point": "after", "status": PASSED})

    found = outcomes(run, ["crashes", "raises", "works"])
    assert [name for name, point in found.items() if point["status"] == PASSED] == [
        "crashes: before", "raises: before", "works: before", "works: after",
    ]  # fmt: skip
    assert found["crashes: end of the group"]["error"] == "the process ended by signal 9"
    error = found["raises: end of the group"]["error"]
    assert error.startswith("ValueError: in ./vlmprune and file.so [")
    assert str(ROOT) not in error and "elsewhere" not in error


def test_a_group_that_hangs_ends_with_its_stage() -> None:
    """It ignores being asked to end, and what it started ends too."""

    def run(group: str, setting: StageSetting, emit: Emit) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.run(["sleep", "600"], check=False)

    found = outcomes(run, ["hangs", "waits"], seconds=1)
    assert {name: point["status"] for name, point in found.items()} == {
        "hangs: end of the group": CUT, "waits: end of the group": CUT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "whole", "expected"),
    [
        ([PASSED, ABSENT], True, PASSED),
        ([PASSED, FAILED], False, FAILED),
        ([PASSED, CUT], True, FAILED),  # checks that did not run have not passed
        ([MEASURED, CUT], False, CUT),
        ([CUT], False, FAILED),
        ([], True, FAILED),
    ],
)
def test_how_a_stage_ends(statuses: list[str], whole: bool, expected: str) -> None:
    stage = GpuStage("made", 1, lambda tiny: [], lambda *_: None, whole=whole)
    assert outcome(stage, [{"status": status} for status in statuses]) == expected


def test_a_record_is_whole_after_every_point(tmp_path: Path) -> None:
    stage = GpuStage("kernels", 1, lambda tiny: [], lambda *_: None)
    record = StageRecord(stage, tmp_path, {"device": "none"})
    record.take({"group": "a", "point": "first", "status": PASSED})
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert (written["status"], len(written["points"])) == ("running", 1)
    record.take({"group": "a", "point": "first", "status": FAILED, "error": "it broke"})
    assert record.finish() == FAILED
    assert len(json.loads((tmp_path / "kernels.json").read_text())["points"]) == 1
    assert "FAILED: a, first: it broke" in summary(tmp_path)
    assert "| bandwidth | no record |" in summary(tmp_path)


@pytest.mark.parametrize(
    ("got", "tolerance", "ok"),
    [
        (torch.tensor([1.0, 2.0]), EXACT, True),
        (torch.tensor([1.0, 2.0001]), EXACT, False),
        (torch.tensor([1.0, 2.0001]), SUMS, True),
        (torch.tensor([1.0, 2.001]), SUMS, False),
        (torch.tensor([1.0, math.nan]), SUMS, False),
        (torch.tensor([1.0, math.nan]), EXACT, False),
        (torch.tensor([1.0]), EXACT, False),
        (torch.tensor([1.0, 2.0]).double(), EXACT, False),
    ],
)
def test_what_a_kernel_is_allowed(got: torch.Tensor, tolerance: tuple[float, float, str], ok: bool) -> None:
    found = Work(lambda: [got], lambda: [torch.tensor([1.0, 2.0])], tolerance).check()
    assert found["ok"] is ok
    json.dumps(found, allow_nan=False)


def test_every_case_is_in_one_group_of_each_precision() -> None:
    for dtype in kernels.DTYPES:
        groups = [group for group in kernels.groups(False) if group.split()[1] == dtype]
        found = [case for group in groups for case in kernels.cases_of(group, False)]
        wanted = [case for case in CASES if dtype == "bf16" or "2^31" not in case.name]
        assert sorted(map(str, found)) == sorted(map(str, wanted))


def test_what_the_plain_model_cannot_do_either_is_absent_and_all_else_failed() -> None:
    def breaks() -> Any:
        raise KeyError(0)

    assert conformance.checked(breaks)["status"] == FAILED
    assert conformance.checked(breaks, lambda: None)["status"] == FAILED
    assert conformance.checked(breaks, breaks)["status"] == ABSENT
    setting = StageSetting(True, time.monotonic() + 600)
    conformance.run_plain("llava", "fp32", "math", "padded", setting)
    with pytest.raises(RuntimeError):  # no CPU has it
        conformance.run_plain("llava", "fp32", "cudnn", "alone", setting)


def test_a_contender_that_breaks_does_not_take_the_others_along() -> None:
    points: dict[str, Point] = {}
    setting = StageSetting(True, time.monotonic() + 600)
    timed = end_to_end.Timed("tiny", setting)
    inputs, _ = end_to_end.prompt(timed.model, 2, 1, setting)
    ways = {"plain": None, "breaks": vlmprune.FastV(keep=0.5, layer=9), "works": vlmprune.Uniform(keep=0.5, layer=0)}
    methods = [end_to_end.TimedMethod(name, method) for name, method in ways.items()]

    def emit(point: Point) -> None:
        points[point["point"]] = point

    with torch.no_grad():
        end_to_end.compete(timed, "made", methods, inputs, 2, setting, emit)
    assert {name: point["status"] for name, point in points.items()} == {
        "made: plain": MEASURED, "made: breaks": FAILED, "made: works": MEASURED,
    }  # fmt: skip
    assert "layer" in points["made: breaks"]["error"]
    works = points["made: works"]
    assert works["milliseconds"]["prefill"]["rounds"] == 2
    assert works["kept_tokens"] * 2 == works["visual_tokens"]


def test_the_stages_fit_five_minutes_and_the_document_says_how() -> None:
    assert sum(stage.limit for stage in STAGES.values()) <= command.SECONDS < 300
    told = re.findall(r"^- `(\w+)` \((\d+) s\): ", (ROOT / "eval/README.md").read_text(), flags=re.MULTILINE)
    assert told == [(name, str(stage.limit)) for name, stage in STAGES.items()]


def test_bad_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "file").touch()
    for words, said in {
        ("--out", str(tmp_path), "--only", "everything"): f"the stages are {', '.join(STAGES)}",
        (): "--out is missing",
        ("--out", str(tmp_path / "file")): "is a file; name a folder",
        ("--summary", str(tmp_path / "none")): "is not a folder",
    }.items():
        monkeypatch.setattr(sys, "argv", ["eval.gpu", *words])
        with pytest.raises(SystemExit) as ended:
            command.main()
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_errors_name_no_path_of_this_machine() -> None:
    try:
        raise RuntimeError(f"cannot open {Path.home()}/.cache/x/kernel.so in {ROOT}/eval/gpu/run.py, 3/4 done")
    except RuntimeError as error:
        text = short(error)
    assert "cannot open kernel.so in ./eval/gpu/run.py, 3/4 done [./tests/eval/test_gpu.py:" in text


def test_a_copy_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(eval.provenance, "ROOT", tmp_path)
    about = eval.provenance.provenance()
    assert (about["commit"], about["dirty"]) == ("unknown", None)
