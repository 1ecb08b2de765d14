"""The captioner's benchmark and its tuning on a picture or two, and that an interrupted benchmark goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlmprune
from demos.tiny_vlm.questions import caption
from eval.captions import run, tune
from eval.captions.rows import CaptionRow
from eval.record import Record
from vlmprune.captioner.vlm import CaptionCost

SCENES = run.held_out(20)


def made(part: run.Part, scenes: Sequence[Any]) -> list[CaptionRow]:
    texts = [caption(scene) for scene in scenes]
    cost = CaptionCost()
    cost.calls["describe"] = len(scenes)
    return [CaptionRow(part.name, texts=texts, cost=cost, seconds=0.5)]


def test_an_interrupted_benchmark_goes_on(tmp_path: Path) -> None:
    work = [(run.Part("a"), SCENES), (run.Part("b"), SCENES[:4])]
    whole, _ = run.table(work, Record(tmp_path / "whole", {}), made)
    asked: list[str] = []

    def stopping(part: run.Part, scenes: Sequence[Any]) -> list[CaptionRow]:
        asked.append(part.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return made(part, scenes)

    with pytest.raises(KeyboardInterrupt):
        run.table(work, Record(tmp_path / "torn", {"seed": 0}), stopping)
    rows, skipped = run.table(work, Record(tmp_path / "torn", {"seed": 0}), stopping)
    assert (rows, skipped) == (whole, [])
    assert asked == ["a", "a", "a", "b"]
    ((first,), (second,)) = rows
    assert (len(first.texts), len(second.texts), first.seconds) == (20, 4, 1.0)
    assert first.record(SCENES)["quality"]["object_recall"]["value"] == 1.0
    assert first.record(SCENES)["cost"]["describe_calls"] == 1


def test_a_method_that_does_not_fit_is_named(tmp_path: Path) -> None:
    def refusing(part: run.Part, scenes: Sequence[Any]) -> list[CaptionRow]:
        raise vlmprune.VlmpruneError("It does not fit.")

    rows, skipped = run.table([(run.Part("x 0.5", "x", 0.5, "y"), SCENES)], Record(tmp_path, {}), refusing)
    assert (rows, skipped) == ([[]], [{"method": "x", "keep": 0.5, "why": "It does not fit."}])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (run, tune):
        monkeypatch.setattr(module, "BUNDLED_CONFIG", replace(run.BUNDLED_CONFIG, max_new_tokens=13))


def test_the_command(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--scenes", "1", "--pruned-scenes", "1", "--methods", "uniform", "--model", "small"]
    monkeypatch.setattr(sys, "argv", ["run", *given, "--out", str(tmp_path / "x.json"), "--records", str(tmp_path)])
    run.main()
    assert "min left" in capsys.readouterr().out
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["rows"][0]["name"] == run.REFERENCE
    names = [row["name"] for row in record["rows"]]
    assert {"3 global samples, same filter", "13 global samples, same filter"} < set(names)
    samples = {name: record["rows"][names.index(f"13 global samples, {name} filter")] for name in ("no", "same")}
    assert samples["same"]["cost"]["match_calls"] > samples["no"]["cost"]["match_calls"] == 0
    assert "Patch Matters minus 13 global samples, same filter" in record["differences"]
    assert [(row["method"], row["keep"]) for row in record["pruned"][1:]] == [("none", None)] * 2 + [
        ("uniform", keep) for keep in run.KEEPS
    ]
    first = json.dumps(record["pruned"])
    run.main()  # everything is in the records
    assert "min left" not in capsys.readouterr().out
    assert json.dumps(json.loads((tmp_path / "x.json").read_text())["pruned"]) == first


def test_tuning(short: None) -> None:
    _, small, processor = vlmprune.load_tiny()
    found = tune.sweep(small, processor, run.held_out(1, split="validation"), (0.3, 0.9))
    assert list(found) == ["one caption", "0.3", "0.9"]
    worse, same, better = ({"object_precision": {"value": value}} for value in (0.4, 0.5, 0.6))
    assert tune.picked({"one caption": same, "0.3": worse, "0.5": same, "0.9": better}) == "0.5"
    assert tune.picked({"one caption": better, "0.3": same}) is None
