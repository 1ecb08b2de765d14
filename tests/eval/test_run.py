"""The harness: one process or several, killed or not, good data or bad, always the same record."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vlmprune
from eval.record import Record
from eval.run import evaluate, main, parser, settings_of
from eval.settings import Settings
from eval.tasks.registry import task_class
from eval.worker import Worker
from tests.eval.data import BUILDERS, jpeg, put
from tests.support.grid import either, only_full
from vlmprune import VlmpruneError
from vlmprune.harness.record import good_lines, repair

QUESTIONS = 24
FORK = multiprocessing.get_context("fork")  # the models are loaded once, in this process


pytestmark = pytest.mark.usefixtures("loaded_once")


def settings(out: Path, **changes: Any) -> Settings:
    given = {"tasks": ("scenes",), "methods": ("fastv", "random"), "keeps": ("0.25",), "limit": QUESTIONS}
    return Settings(out=str(out), **given | changes)


def process(out: Path, rank: int = 0, world: int = 1, **changes: Any) -> Any:
    """A forked process that evaluates its shard."""

    def body() -> None:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        evaluate(settings(out, **changes))

    started = FORK.Process(target=body)
    started.start()
    return started


def content(out: Path) -> dict[str, Any]:
    """All that a record says, without how long it took and who ran it."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("**/samples*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.get("report", {}).pop("seconds", None)
        found[str(path.relative_to(out))] = lines
    for path in sorted(out.glob("**/summary.json")):
        summary = json.loads(path.read_text())
        del summary["provenance"], summary["costs"]["seconds"]
        found[str(path.relative_to(out))] = summary
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("alone")
    evaluate(settings(out))
    return content(out)


def test_one_process(alone: dict[str, Any]) -> None:
    assert list(alone) == [
        f"scenes/{method}-keep0.25/{file}"
        for file in ("samples.jsonl", "summary.json")
        for method in ("fastv", "random")
    ]
    summary = alone["scenes/fastv-keep0.25/summary.json"]
    assert summary["questions"] == summary["answered"] == len(summary["scores"]) == QUESTIONS
    assert summary["value"] == pytest.approx(sum(summary["scores"]) / QUESTIONS, abs=1e-5)
    assert summary["costs"]["kept_tokens"] == 49
    line = alone["scenes/fastv-keep0.25/samples.jsonl"][0]
    assert set(line) == {
        "id",
        "group",
        "prompt_sha256",
        "picture_sha256",
        "answer",
        "parsed",
        "score",
        "meta",
        "report",
    }
    assert sum(line["report"]["cells"]["kept"]) == len(line["report"]["kept"]) == 49
    assert sum(line["report"]["cells"]["all"]) == 196


@pytest.mark.parametrize("batch_size", either([5], [1, 5]))
def test_two_processes_equal_one(alone: dict[str, Any], tmp_path: Path, batch_size: int) -> None:
    if batch_size > 1:
        evaluate(settings(tmp_path / "one", batch_size=batch_size))
        alone = content(tmp_path / "one")
    both = [process(tmp_path / "two", rank, 2, batch_size=batch_size) for rank in (0, 1)]
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert content(tmp_path / "two") == alone


@only_full  # a cluster of actors
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is an optional extra")
def test_ray_equals_one_process(alone: dict[str, Any], tmp_path: Path) -> None:
    import ray

    try:
        evaluate(settings(tmp_path), engine="ray", workers=2)
    finally:
        ray.shutdown()
    assert content(tmp_path) == alone


class TestSharing:
    methods = (
        "none", "small-alone", "blind", "random", "visionzip", "fastv-oracle", "sgl", "sgl+exit", "var"
    )  # fmt: skip

    @only_full
    def test_answers_are_what_they_are_without(self, tmp_path: Path) -> None:
        few = ("none", "small-alone", "visionzip", "sgl", "sgl+exit")
        methods, limit = either([(few, 4)], [(self.methods, 8)])[0]
        given = {"methods": methods, "keeps": ("0.35", "0.09"), "limit": limit, "batch_size": limit // 2}
        alone, together = tmp_path / "alone", tmp_path / "together"
        evaluate(settings(alone, **given))
        evaluate(settings(together, share=True, **given))
        expected, found = content(alone), content(together)
        for name in expected:
            if name.endswith("summary.json"):
                assert (expected[name].pop("share"), found[name].pop("share")) == (False, True)
        assert found == expected

    def test_every_row_is_charged(self, tmp_path: Path) -> None:
        """The tower's time once by every method that sees pictures and does not read the tower; a guide's likewise."""
        evaluate(settings(tmp_path, methods=self.methods, keeps=("0.35", "0.09"), limit=4, batch_size=4, share=True))
        seconds = {
            path.parent.name: json.loads(path.read_text().splitlines()[0])["report"]["seconds"]
            for path in tmp_path.glob("scenes/*/samples.jsonl")
        }
        vision = seconds["none"]["vision"]
        assert vision > 0.001
        for name in ("random-keep0.35", "var", "fastv-oracle-keep0.35", "fastv-oracle-keep0.09"):
            assert seconds[name]["vision"] == vision
        assert seconds["small-alone"]["vision"] != vision
        assert seconds["visionzip-keep0.35"]["vision"] > 0.001
        for name in ("sgl", "fastv-oracle"):
            assert seconds[f"{name}-keep0.35"]["guide"] == seconds[f"{name}-keep0.09"]["guide"] > 0.001
        assert seconds["sgl+exit-keep0.35"]["guide"] == seconds["sgl-keep0.35"]["guide"]
        for name, spent in seconds.items():
            assert spent["total"] >= sum(v for stage, v in spent.items() if stage not in ("total", "decode")) - 1e-4, (
                name
            )


@only_full
def test_torchrun(alone: dict[str, Any], tmp_path: Path) -> None:
    """Two processes that torchrun starts, each with the bundled models of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["-m", "eval.run", "--task", "scenes", "--method", "fastv", "random", "--keep", "0.25"]
    command += ["--limit", str(QUESTIONS), "--out", str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(vlmprune.__file__).parents[1])}
    subprocess.run(command, check=True, capture_output=True, env=env)
    assert content(tmp_path) == alone


@only_full
def test_ten_kills_leave_the_same_record(alone: dict[str, Any], tmp_path: Path) -> None:
    dice, partial = random.Random(7), 0
    for _ in range(10):
        started = process(tmp_path)
        time.sleep(dice.uniform(0.05, 0.5))
        assert started.pid is not None
        os.kill(started.pid, signal.SIGKILL)
        started.join()
        partial += started.exitcode == -signal.SIGKILL
    assert partial > 0
    # As if the last kill had come in the middle of a write.
    with (tmp_path / "scenes/fastv-keep0.25/samples.jsonl").open("ab") as file:
        file.write(b'{"id": "colour/0", "scor')
    evaluate(settings(tmp_path))
    assert content(tmp_path) == alone


def test_killed_shards_are_taken_over_by_one_process(alone: dict[str, Any], tmp_path: Path) -> None:
    both = [process(tmp_path, rank, 2) for rank in (0, 1)]
    deadline = time.monotonic() + 600
    while not any(tmp_path.glob("**/samples-1-of-2.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for one in both:
        os.kill(one.pid, signal.SIGKILL)
        one.join()
    evaluate(settings(tmp_path))
    assert content(tmp_path) == alone


@only_full
def test_a_limit_can_grow_and_shrink(alone: dict[str, Any], tmp_path: Path) -> None:
    evaluate(settings(tmp_path, limit=4))
    evaluate(settings(tmp_path))
    assert content(tmp_path) == alone
    (summary, _) = evaluate(settings(tmp_path, limit=4))
    assert summary["questions"] == 4
    assert len(list(good_lines(tmp_path / "scenes/fastv-keep0.25/samples.jsonl"))) == QUESTIONS


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path, alone: dict[str, Any]) -> None:
    evaluate(settings(tmp_path, limit=1))
    with pytest.raises(VlmpruneError, match=r"holds a run with max_new_tokens=8, not 3; give another --out"):
        evaluate(settings(tmp_path, limit=1, max_new_tokens=3))


def test_other_words_are_refused(tmp_path: Path) -> None:
    given = {"tasks": ("gqa",), "data": str(tmp_path), "methods": ("none",), "limit": None}
    BUILDERS["gqa"](tmp_path / "gqa")
    evaluate(settings(tmp_path / "out", **given))
    path = tmp_path / "gqa/testdev_balanced_questions.json"
    path.write_text(path.read_text().replace("What is it?", "What is that?"))
    with pytest.raises(VlmpruneError, match="asked question '202' in other words"):
        evaluate(settings(tmp_path / "out", **given))


class TestBadPictures:
    def given(self, root: Path, **more: Any) -> dict[str, Any]:
        if not (root / "vizwiz").exists():
            BUILDERS["vizwiz"](root / "vizwiz")
            put(root / "vizwiz", "val/a.jpg", jpeg(size=(400, 300))[:2000])
        return {"tasks": ("vizwiz",), "data": str(root), "methods": ("none",), "limit": None, **more}

    def test_counted_and_named_and_asked_again_when_mended(self, tmp_path: Path) -> None:
        (summary,) = evaluate(settings(tmp_path / "out", **self.given(tmp_path)))
        assert (summary["questions"], summary["answered"], summary["bad_count"]) == (2, 1, 1)
        assert summary["bad"][0]["where"] == "a.jpg"
        assert "cannot be read as an image" in summary["bad"][0]["why"]
        assert summary["scores"][0] is None
        put(tmp_path / "vizwiz", "val/a.jpg", jpeg())
        (summary,) = evaluate(settings(tmp_path / "out", **self.given(tmp_path)))
        assert (summary["answered"], summary["bad_count"]) == (2, 0)
        assert len(list(good_lines(tmp_path / "out/vizwiz/none/samples.jsonl"))) == 2

    def test_fatal_only_when_strict(self, tmp_path: Path) -> None:
        with pytest.raises(VlmpruneError, match="cannot be read as an image"):
            evaluate(settings(tmp_path / "out", **self.given(tmp_path, strict=True)))

    def test_an_empty_file_gives_a_summary_that_says_so(self, tmp_path: Path) -> None:
        given = self.given(tmp_path)
        put(tmp_path / "vizwiz", "val.json", "")
        (summary,) = evaluate(settings(tmp_path / "out", **given))
        assert (summary["questions"], summary["value"]) == (0, None)
        assert summary["bad"] == [{"where": "vizwiz", "why": "val.json is empty"}]

    def test_unscored_answers_become_a_predictions_file(self, tmp_path: Path) -> None:
        BUILDERS["mmvet"](tmp_path / "mmvet")
        given = {"tasks": ("mmvet",), "data": str(tmp_path), "methods": ("none",), "max_new_tokens": 2}
        (summary,) = evaluate(settings(tmp_path / "out", **given))
        assert summary["value"] is None
        assert list(json.loads((tmp_path / "out/mmvet/none/predictions.json").read_text())) == ["v1_0"]


class TestBoxes:
    """Which size a model's boxes are in: the worker asks the processor, for each run anew."""

    def given(self, unit: str, processor: Any) -> tuple[int, int]:
        task = task_class("refcoco")(boxes=unit)
        task.seen_size = lambda size: (1, 1)  # of another run's model
        Worker(Settings((), (), (), "", boxes=unit)).seen_size(task, processor)
        return task.seen_size((640, 480))

    def test_of_qwen_and_of_others(self) -> None:
        images = Qwen2VLImageProcessorPil()

        class Qwen2_5_VLProcessor:  # the name is what tells
            image_processor = images

        class OtherProcessor:
            image_processor = images

        assert self.given("auto", Qwen2_5_VLProcessor()) == self.given("resized", OtherProcessor()) == (644, 476)
        assert self.given("auto", OtherProcessor()) == (640, 480)
        images.size = {"shortest_edge": 3136, "longest_edge": 28 * 28 * 4}
        assert self.given("auto", Qwen2_5_VLProcessor()) == (56, 28)
        with pytest.raises(VlmpruneError, match="--boxes resized is for processors that resize images as Qwen2"):
            self.given("resized", object())


class TestRecord:
    @pytest.mark.parametrize(
        ("torn", "left"),
        [
            (b"", 1),
            (b'{"id"', 1),
            (b'{"id": "b"}', 1),
            (b"\x00\xff", 1),
            (b'{"id": "b"}\n', 2),
            (b'[1]\n{"id": "c"}\n', 2),
        ],
    )
    def test_repair(self, tmp_path: Path, torn: bytes, left: int) -> None:
        path = tmp_path / "samples.jsonl"
        path.write_bytes(b'{"id": "a"}\n' + torn)
        repair(path)
        assert len(list(good_lines(path))) == left
        assert path.read_bytes().endswith(b"\n")

    def test_nothing_is_written_twice(self, tmp_path: Path) -> None:
        record = Record(tmp_path, {})
        for _ in range(2):
            record.append([{"id": "a", "score": 1.0}])
        assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 1
        assert record.complete(["a", "b"]) is None
        assert [line["id"] for line in record.complete(["a"]) or ()] == ["a"]


class TestCommandLine:
    def test_the_rows_of_every_table(self, tmp_path: Path) -> None:
        arguments = ["--task", "scenes", "--limit", "2", "--keep", "0.5", "20", "--baselines", "--out", str(tmp_path)]
        assert main(arguments) == 0
        names = sorted(path.parent.name for path in tmp_path.glob("scenes/*/summary.json"))
        pruned = [f"{m}-keep{k}" for m in ("downsample", "random", "uniform") for k in ("0.5", "20")]
        assert names == sorted(["none", "small-alone", "blind", *pruned])
        blind = json.loads((tmp_path / "scenes/blind/summary.json").read_text())
        assert blind["costs"]["visual_tokens"] == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--task", "gqaa", "--method", "none"], "There is no task 'gqaa'; did you mean 'gqa'?"),
            (["--task", "gqa", "--method", "fastvv"], "did you mean 'fastv'?"),
            (["--task", "gqa"], "name a method with --method"),
            (["--task", "gqa", "--method", "fastv", "--keep", "2.0"], "keep=2.0 is out of range"),
            (["--task", "gqa", "--method", "fastv", "--keep", "x"], "--keep 'x' is not a number"),
            (["--task", "gqa", "--method", "none", "--limit", "0"], "--limit 0 is too small"),
            (["--task", "gqa", "--method", "none"], "testdev_balanced_questions.json"),
        ],
    )
    def test_bad_input_is_one_line(
        self, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*arguments, "--out", str(tmp_path), "--data", str(tmp_path)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert said in printed.err
        assert printed.err.count("\n") == 1

    def test_the_command_line_reaches_the_settings(self) -> None:
        arguments = ["--task", "gqa", "pope", "--method", "fastv", "--keep", "0.1", "--layer", "1", "--out", "x"]
        found = settings_of(parser().parse_args(arguments))
        assert (found.tasks, found.keeps, found.layer) == (("gqa", "pope"), ("0.1",), "1")
        assert [run.name for run in found.runs()] == ["gqa/fastv-keep0.1-layer1", "pope/fastv-keep0.1-layer1"]
