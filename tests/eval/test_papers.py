"""Published tables: their commands against eval.run's own parser, numbers with their sources, ours beside them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import vlmprune
from eval.papers.__main__ import main
from eval.papers.data import FOLDER, names, read
from eval.run import parser, settings_of
from eval.settings import ROWS, registered
from eval.tasks.registry import TASKS, task_class

PAPERS = ("cdpruner", "divprune", "fastv", "sgl", "visionzip")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    return line


def test_every_paper_is_there() -> None:
    assert tuple(names()) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_the_commands_are_those_of_eval_run(name: str) -> None:
    """They parse, name real tasks with data on the Hub and real methods, and their runs cover every row of a table."""
    paper = read(name)
    commands = [shlex.split(command) for command in paper.commands()]
    assert commands
    tables = [table for table in paper.tables if table.tasks]
    for command, table in zip(commands, list({t.model: t for t in tables}.values()), strict=True):
        assert command[:3] == ["python", "-m", "eval.run"]
        settings = settings_of(parser().parse_args(command[3:]))
        assert (settings.model, settings.guide, settings.hub) == (table.model, table.guide, True)
        runs = {(run.task, run.method, run.keep, run.layer) for run in settings.runs()}
        for row in table.rows:
            assert row.method in ROWS or registered(row.method) in vlmprune.list_methods()
            layer = None if row.keep is None else table.layer
            assert {(task, row.method, row.keep, layer) for task in table.tasks} <= runs
        assert all(task_class(task).hub is not None for task in table.tasks)


@pytest.mark.parametrize("name", PAPERS)
def test_every_number_has_its_source(name: str) -> None:
    for table in json.loads((FOLDER / f"{name}.json").read_text())["tables"]:
        assert table["source"]["paper"] and {"table", "page"} <= set(table["source"])
        assert table["rows"][0]["method"] == "none"
        for row in table["rows"]:
            assert set(row["values"]) <= set(table["columns"])
            assert all(isinstance(value, int | float) and value > 0 for value in row["values"].values())
        for column in table["columns"].values():
            assert column["task"] is None or column["task"] in TASKS


def test_sgls_averages_are_those_of_its_columns() -> None:
    """What was read in a transcript fits together: the mean of eleven ratios to the unpruned model is the twelfth."""
    (table,) = read("sgl").tables
    average = next(one.name for one in table.benchmarks if one.relative)
    full = table.rows[0].values
    for row in table.rows:
        ratios = [100 * value / full[name] for name, value in row.values.items() if name != average]
        assert len(ratios) == 11
        assert row.values[average] == pytest.approx(sum(ratios) / 11, abs=0.006)


@pytest.mark.parametrize("name", PAPERS)
def test_without_records_there_is_nothing_that_looks_like_a_result(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, paper = shown(capsys, name), read(name)
    for command in paper.commands():
        assert command in text
    assert "|" not in text and "±" not in text
    words = set(re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", text))
    keeps = {row.keep for table in paper.tables for row in table.rows}
    # What is left are budgets, a model's version, a paper's number.
    assert words <= keeps | {"1.5"} | set(re.findall(r"arXiv (\d+\.\d+)", text))


@pytest.mark.parametrize("name", PAPERS)
def test_published_numbers_are_shown_with_their_sources(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, name, "--published")
    for table in read(name).tables:
        assert f"Published: {table.source}." in text
        for row in table.rows:
            for benchmark, value in row.values.items():
                assert f"| {row.method} | {row.keep or '-'} | {benchmark} | {value:g} |  |  |" in text


def record(folder: Path, **values: Any) -> None:
    """A summary as eval.run writes it."""
    made = {
        "guide": None, "options": {}, "main": "accuracy", "value": 0.5, "standard_error": 0.01, "costs": {},
        "metrics": {"accuracy": 0.5}, "provenance": {"limit": None}, "keep": None, "backend": "sdpa", "batch_size": 1,
        "questions": 1, "bad_count": 0, "units": [], "scores": [], "data": {}, **values,
    }  # fmt: skip
    where = folder / f"{made['task']}-{made['method']}-{made['keep']}-{len(list(folder.glob('*')))}"
    where.mkdir(parents=True)
    (where / "summary.json").write_text(json.dumps(made))


SEVEN = "llava-hf/llava-1.5-7b-hf"


def test_ours_stand_beside_the_published_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path, model=SEVEN, task="gqa", method="none", metrics={"accuracy": 0.62})
    record(tmp_path, model=SEVEN, task="gqa", method="divprune", keep="0.0980", metrics={"accuracy": 0.56})
    record(tmp_path, model=SEVEN, task="pope", method="divprune", keep="0.098", main="f1", metrics={"f1": 0.8})
    limit = {"limit": 100}
    record(tmp_path, model=SEVEN, task="mmbench", method="divprune", keep="0.098", provenance=limit)
    scores = {"score_share": 0.7, "perception": 1400.0, "cognition": 300.0}
    record(tmp_path, model=SEVEN, task="mme", method="divprune", keep="0.098", main="score_share", metrics=scores)
    text = shown(capsys, "divprune", "--records", str(tmp_path))
    for line in (
        "| none | - | GQA | 61.96 | 62.00 ± 1.00 | +0.04 |",
        "| divprune | 0.098 | GQA | 56.85 | 56.00 ± 1.00 | -0.85 |",
        "| divprune | 0.098 | POPE | 86.02 | 80.00 ± 1.00 | -6.02 |",
        "| divprune | 0.098 | MMBench | 59.19 | 50.00 ± 1.00 (first 100 questions) | -9.19 |",
        "| divprune | 0.098 | MME perception | 1328 | 1400.00 | +72.00 |",  # not the metric of the standard error
        "| divprune | 0.098 | MMMU | 35.89 |  |  |",
    ):
        assert line in text


@pytest.mark.parametrize(
    "other",
    [{"model": "llava-hf/llava-1.5-7b"}, {"method": "fastv"}, {"keep": "0.1"}, {"keep": "1"}, {"task": "vqav2"}],
)
def test_other_records_are_no_comparison(
    other: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, **{"model": SEVEN, "task": "gqa", "method": "divprune", "keep": "0.098", **other})
    assert "None of the records below" in refused(capsys, "divprune", "--records", str(tmp_path))


def test_another_layer_or_guide_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    thirteen = "llava-hf/llava-1.5-13b-hf"
    record(tmp_path / "f", model=thirteen, task="ai2d", method="fastv", keep="0.5", options={"layer": 3})
    assert "None of the records" in refused(capsys, "fastv", "--records", str(tmp_path / "f"))
    record(tmp_path / "f", model=thirteen, task="ai2d", method="fastv", keep="0.5", options={"layer": 2})
    assert "| fastv | 0.5 | AI2D | 58.96 | 50.00 ± 1.00 | -8.96 |" in shown(
        capsys, "fastv", "--records", str(tmp_path / "f")
    )
    sgl = {"model": "InternVL2-26B-hf", "task": "gqa", "method": "sgl", "keep": "0.4"}
    record(tmp_path / "s", **sgl, guide="another")
    assert "None of the records" in refused(capsys, "sgl", "--records", str(tmp_path / "s"))


def test_an_average_is_of_the_benchmarks_that_both_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """99 and 90 % of the unpruned model's; MMBench was not run unpruned."""
    model, guide = {"model": "InternVL2-26B-hf"}, "InternVL2-2B-hf"
    for task, full, part in (("gqa", 0.6, 0.594), ("textvqa", 0.8, 0.72)):
        record(tmp_path, **model, task=task, method="none", metrics={"accuracy": full})
        record(tmp_path, **model, task=task, method="sgl", keep="0.2", guide=guide, metrics={"accuracy": part})
    record(tmp_path, **model, task="mmbench", method="sgl", keep="0.2", guide=guide)
    record(tmp_path, model=guide, task="gqa", method="small-alone", metrics={"accuracy": 0.3})
    text = shown(capsys, "sgl", "--records", str(tmp_path))
    name = "average of 11 benchmarks, % of the unpruned model's"
    assert f"| sgl | 0.2 | {name} | 98.36 | 94.50 (of 2 benchmarks) | -3.86 |" in text
    assert f"| sgl | 0.4 | {name} | 100.14 |  |  |" in text
    assert f"| small-alone | - | {name} | 87.25 | 50.00 (of 1 benchmarks) | -37.25 |" in text


def test_mme_names_the_metrics_of_its_task() -> None:
    lines = [
        {"id": f"{sub}/{i}", "group": f"{sub}", "score": 1.0, "parsed": "yes", "meta": {"subtask": sub, "members": 2}}
        for sub in ("existence", "code_reasoning")
        for i in range(2)
    ]
    metrics = task_class("mme")().metrics(lines)
    for name in PAPERS:
        for table in read(name).tables:
            for one in table.benchmarks:
                assert one.task != "mme" or one.of(metrics) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fast"], "There is no paper 'fast'; did you mean 'fastv'?"),
        (["sparsevlm"], "There is no paper 'sparsevlm'"),
        (["fastv", "--records", "nowhere"], "There is no summary.json below 'nowhere'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *arguments)
