"""Each thing that is wrong outside of the code is one sentence and status 2, Ctrl-C is 130, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import tables
from eval.record import Record
from eval.run import main
from tests.eval.data import BUILDERS, HUB, jpeg, parquet, put, tsv
from tests.support.grid import few, only_full
from vlmprune.harness.record import good_lines

pytestmark = pytest.mark.usefixtures("loaded_once")


def status_of(
    capsys: pytest.CaptureFixture[str], *arguments: Any, command: Callable[..., int] = main
) -> tuple[int, str]:
    """The status and what stands on stderr, which is one line where the status is not 0."""
    capsys.readouterr()
    status = command([str(one) for one in arguments])
    printed = capsys.readouterr()
    if status:
        assert printed.out == ""
        assert sum("batches, about" not in line for line in printed.err.splitlines()) == 1
        assert "Traceback" not in printed.err
    return status, printed.err.splitlines()[-1] if printed.err else ""


def scenes(out: Path, *more: Any) -> list[Any]:
    return ["--task", "scenes", "--method", "none", "--limit", "4", "--max-new-tokens", "2", "--out", out, *more]


def record(out: Path) -> list[dict[str, Any]]:
    rows = list(good_lines(out / "scenes/none/samples.jsonl"))
    for row in rows:
        del row["report"]["seconds"]
    return rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([str(one) for one in scenes(out)]) == 0
    return record(out)


def at_the_third_write(monkeypatch: pytest.MonkeyPatch, happens: Callable[[int, bytes], None]) -> None:
    write, calls = os.write, []

    def writing(file: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 3:
            happens(file, data)
        return write(file, data)

    monkeypatch.setattr("vlmprune.harness.record.os.write", writing)


def test_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, undisturbed: Any
) -> None:
    """In the middle of a line, as it comes."""
    write = os.write

    def full(file: int, data: bytes) -> None:
        write(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        at_the_third_write(patch, full)
        status, said = status_of(capsys, *scenes(tmp_path))
    assert (status, "the disk is full (No space left on device); make room" in said) == (2, True)
    assert record(tmp_path) == undisturbed[:2]
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    assert record(tmp_path) == undisturbed


def test_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, undisturbed: Any
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # servers of other tests leave theirs
    try:
        with monkeypatch.context() as patch:
            at_the_third_write(patch, lambda file, data: signal.raise_signal(signal.SIGINT))
            status, said = status_of(capsys, *scenes(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert said == "vlmprune: interrupted; what was answered is recorded, and the same command goes on there"
    assert record(tmp_path) == undisturbed[:2]
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    assert record(tmp_path) == undisturbed


@only_full
def test_a_file_that_cannot_be_replaced_leaves_no_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "summary.json"))

    with monkeypatch.context() as patch:
        patch.setattr("vlmprune.harness.record.os.replace", full)
        status, said = status_of(capsys, *scenes(tmp_path))
    assert (status, "the disk is full" in said) == (2, True)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_the_records_should_go(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "file", "something")
    status, said = status_of(capsys, *scenes(tmp_path / place))
    assert (status, "cannot be a folder of records" in said, "give another --out" in said) == (2, True, True)
    assert (tmp_path / "file").read_text() == "something"
    status, said = status_of(capsys, tmp_path / "file", command=tables.main)
    assert (status, "no summary.json below" in said) == (2, True)


@pytest.mark.parametrize("content", few(["[]", "{}", "3", "null", "{", "", b"\xff\xfe{\x00}\x00", '"x"'], 4))
def test_a_run_of_another_shape(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "scenes/none/run.json", content)
    status, said = status_of(capsys, *scenes(tmp_path))
    assert status == 2
    assert "does not say what its run is; give another --out or remove that folder" in said


@pytest.mark.parametrize(
    "without",
    few([["share"], ["reading", "scorers", "dataset", "config", "split"], ["boxes", "backend"]], 3),
)
def test_a_record_older_than_a_field_goes_on(
    without: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: Any
) -> None:
    assert status_of(capsys, *scenes(tmp_path, "--limit", "2"))[0] == 0
    path = tmp_path / "scenes/none/run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in without}))
    if "share" in without or "reading" in without:  # what is asked for now is not what held then
        other = ["--share"] if "share" in without else ["--reading", "person"]
        assert "holds a run with" in status_of(capsys, *scenes(tmp_path, *other))[1]
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    assert record(tmp_path) == undisturbed


@only_full
def test_an_older_record_is_scored_as_today(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: Any
) -> None:
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    folder = tmp_path / "scenes/none"
    path = folder / "run.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "scorers"}))
    rows = [row | {"score": 0.25, "parsed": "?"} for row in good_lines(folder / "samples.jsonl")]
    put(folder, "samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    assert record(tmp_path) == undisturbed
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["scores"] == [row["score"] for row in undisturbed]


@only_full
def test_lines_of_another_shape_are_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: Any
) -> None:
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    path = tmp_path / "scenes/none/samples.jsonl"
    rows = path.read_text().splitlines()
    short = json.dumps({"id": undisturbed[1]["id"], "answer": "red"})
    path.write_text("\n".join([rows[0], short, "[1]", '"x"', rows[2], rows[3][:50]]))
    assert status_of(capsys, *scenes(tmp_path))[0] == 0
    assert record(tmp_path) == undisturbed


@only_full
def test_a_budget_is_run_once_however_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    budgets = [".25", "0.250", "0.25", "2.5e-1", " 0.25", "1", "+1", "01", "1.0", "1."]
    arguments = ["--task", "scenes", "--method", "uniform", "--limit", "1", "--max-new-tokens", "1", "--out", tmp_path]
    assert status_of(capsys, *arguments, "--keep", *budgets)[0] == 0
    names = sorted(path.parent.name for path in tmp_path.glob("scenes/*/summary.json"))
    assert names == ["uniform-keep0.25", "uniform-keep1", "uniform-keep1.0"]


# -- data and arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--task", "gqa", "--exit-at", "x"], "argument --exit-at: invalid float value: 'x'; see --help"),
        (["--task", "gqa", "--engine", "foo"], "invalid choice: 'foo'"),
        (["--task", "gqa", "--reading", "mine"], "invalid choice: 'mine'"),
        (["--task", "gqa", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--method", "none"], "the following arguments are required: --task"),
        (["--task", "gqa", "pope", "--method", "none", "--split", "val"], "--split is for one task, and --task names"),
        (["--task", "gqa", "pope", "--method", "none", "--dataset", "x"], "--dataset is for one task"),
        (["--task", "gqa", "--method", "none", "--dataset", "nowhere"], "There is no data set 'nowhere'"),
        (["--task", "scenes", "--method", "none", "--config", "en"], "--config chooses among parquet files"),
        (["--task", "mmbench", "--method", "none", "--dataset", "MMBench_DEV_CN_V11"], "no MMBench_DEV_CN_V11.tsv"),
        (["--task", "gqa", "--method", "fastv", "--keep", "nan"], "nan"),
        (["--task", "gqa", "--method", "fastv", "--keep", "1e999"], "inf"),
    ],
)
def test_arguments(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = status_of(capsys, *arguments, "--out", tmp_path, "--data", tmp_path)
    assert (status, said in printed) == (2, True), printed


def on(task: str, root: Path, *more: Any) -> list[Any]:
    short = ["--method", "none", "--max-new-tokens", "1", "--data", root, "--out", root / "out"]
    return ["--task", task, *short, *more]


def summary_of(task: str, root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "out" / task / "none/summary.json").read_text()))


def test_the_folder_of_data_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "data", "x")
    status, said = status_of(capsys, *on("gqa", tmp_path), "--data", tmp_path / "data")
    assert (status, "testdev_balanced_questions.json" in said) == (2, True)


@only_full
def test_a_folder_where_a_file_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BUILDERS["vizwiz"](tmp_path / "vizwiz")
    (tmp_path / "vizwiz/val.json").unlink()
    (tmp_path / "vizwiz/val.json").mkdir()
    status, said = status_of(capsys, *on("vizwiz", tmp_path))
    assert (status, "finds no file" in said) == (2, True)
    (tmp_path / "vizwiz/val.json").rmdir()
    BUILDERS["vizwiz"](tmp_path / "vizwiz")
    (tmp_path / "vizwiz/val/a.jpg").unlink()
    (tmp_path / "vizwiz/val/a.jpg").mkdir()
    assert status_of(capsys, *on("vizwiz", tmp_path))[0] == 0
    summary = summary_of("vizwiz", tmp_path)
    assert (summary["answered"], "is not a file" in summary["bad"][0]["why"]) == (1, True)


@only_full
def test_questions_that_no_prompt_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image's token, and half of a surrogate pair, as a cut JSON escape leaves it, in a text and in an id."""
    rows = [
        {"image": name, "question": question, "answers": [{"answer": "red"}]}
        for name, question in (("a.jpg", "Is <image> red?"), ("b.jpg", "Is it \ud83d?"), ("\udc00.jpg", "Is it red?"),
                               ("c.jpg", "Is it red?"))
    ]  # fmt: skip
    put(tmp_path, "vizwiz/val.json", rows)
    for name in "abc":
        put(tmp_path, f"vizwiz/val/{name}.jpg", jpeg())
    status, _ = status_of(capsys, *on("vizwiz", tmp_path))
    summary = summary_of("vizwiz", tmp_path)
    assert (status, summary["answered"], summary["bad_count"]) == (0, 1, 3)
    assert {bad["where"] for bad in summary["bad"]} == {"a.jpg", "b.jpg", "\\udc00.jpg"}
    status, said = status_of(capsys, *on("vizwiz", tmp_path, "--strict"))
    assert (status, "has a fault at" in said) == (2, True)


@only_full
def test_cells_that_are_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN, as pandas leaves it in a column of texts, in what is only reported."""
    table = HUB["scienceqa"] | {"subject": [float("nan")]}
    parquet(tmp_path / "scienceqa/a.parquet", table)
    assert status_of(capsys, *on("scienceqa", tmp_path))[0] == 0
    assert summary_of("scienceqa", tmp_path)["answered"] == 1


@only_full
def test_a_tsv_in_utf_16_is_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "mmbench/MMBench_DEV_EN_V11.tsv", tsv("mmbench")[1].encode("utf-16"))
    assert status_of(capsys, *on("mmbench", tmp_path, "--dataset", "MMBench_DEV_EN_V11"))[0] == 0
    summary = summary_of("mmbench", tmp_path)
    assert (summary["answered"], summary["bad_count"]) == (5, 0)
    assert summary["provenance"]["source"] == "MMBench_DEV_EN_V11.tsv"
    # Another table in the same folder of records is another run.
    put(tmp_path, "mmbench/MMBench_DEV_CN_V11.tsv", tsv("mmbench")[1])
    status, said = status_of(capsys, *on("mmbench", tmp_path, "--dataset", "MMBench_DEV_CN_V11"))
    assert (status, "holds a run with dataset='MMBench_DEV_EN_V11'" in said) == (2, True)


@pytest.mark.parametrize("content", ["[]", "{}", '{"task": "gqa"}', "{", "3", b"\xff\xfe\x00"])
def test_a_summary_of_another_shape(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path, "gqa/none/summary.json", content)
    status, said = status_of(capsys, tmp_path, command=tables.main)
    assert (status, "is no summary" in said) == (2, True)


def test_a_record_says_what_its_folder_is(tmp_path: Path) -> None:
    assert Record(tmp_path / "a", {"x": 1}).before == {"x": 1}
    assert Record(tmp_path / "a", {"x": 1, "y": 2}).before == {"x": 1}


@pytest.mark.parametrize("option", ["--out", "--model", "--guide", "--dataset", "--split"])
def test_an_empty_option_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--out \'\'` wrote its records into the working directory, and `--dataset \'\'` was not looked at."""
    status, said = status_of(capsys, *scenes(tmp_path), option, "")
    assert (status, said) == (2, f"vlmprune: {option} is empty; name something, or leave it out")


def test_data_of_which_nothing_can_be_used_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of another shape left a summary without a value, nothing on stderr, and status 0."""
    put(tmp_path / "data" / "vizwiz", "val.json", '{"a": 1}')
    (tmp_path / "data" / "vizwiz" / "val").mkdir()
    words = ["--task", "vizwiz", "--data", str(tmp_path / "data"), "--method", "none", "--out", str(tmp_path / "out")]
    status, said = status_of(capsys, *words)
    assert status == 2
    assert said == "vlmprune: vizwiz, none: not used: vizwiz (val.json is of type dict, not a list)"
