"""The SGL study: its rows, the choice of FastV's layer, and its record, from summaries made by hand and from a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from demos.tiny_vlm.questions import SCORED
from eval.settings import DIVERSE, extras
from eval.sgl import study, tables, top_p
from eval.tasks.registry import TASKS
from tests.support.grid import only_full
from vlmprune import VlmpruneError
from vlmprune.flow.locate import ImageSpan, SampleLayout, plain_grid

CHOICE = {"0.64": 3, "0.5": 1, "0.35": 1, "0.18": 1}


def average(row: study.StudyRow) -> float:
    """The layer-averaged retention of a row, layer by layer."""
    assert row.keep is not None
    return sum(1.0 if layer < row.layer else row.keep for layer in range(study.LAYERS)) / study.LAYERS


def test_every_row_has_the_retention_that_it_stands_for() -> None:
    table = study.rows(CHOICE)
    for row in table:
        for point in row.at:
            assert average(row) == pytest.approx(point)
        for point in row.entering:
            assert (row.keep, row.layer) == (point, 0)
    for point in study.RETENTION:
        names = {row.method for row in table if point in row.at}
        assert names >= {"random", "uniform", "downsample", "fastv-oracle", "sgl", "sgl+exit"}
        assert ("fastv" in names) == (f"{point:g}" in CHOICE)
    assert {"none", "small-alone", "blind"} <= {row.method for row in table}
    assert len({row.run("t") for row in table}) == len(table)


def test_exits_are_a_run_of_their_own() -> None:
    run = next(row for row in study.rows(CHOICE) if row.method == "sgl+exit").run("scenes")
    assert study.StudySettings(("scenes",), (), (), "x").method(run, None) is None  # wants a loaded guide
    assert run.name.startswith("scenes/sgl+exit-keep")


def test_the_best_layer_on_validation_is_chosen() -> None:
    table = study.fastv_candidates()
    assert {row.layer for row in table if row.at == (0.64,)} == {1, 2, 3}
    found = [{"value": {1: 0.5, 2: 0.7, 3: 0.7}[row.layer]} for row in table]
    assert study.chosen(table, found)["layers"] == {"0.64": 2, "0.5": 2, "0.35": 2, "0.18": 1}


def test_the_best_exponent_over_the_small_budgets_is_chosen() -> None:
    table = study.diversity_candidates()
    assert all(average(row) == pytest.approx(row.at[0]) for row in table)
    right = {
        "sgl+diversity=0.5": (0.9, 0.9, 0.6),
        "sgl+diversity=1": (0.8, 0.8, 0.85),
        "sgl+diversity=2": (0.9, 0.7, 0.7),
    }
    found = [{"value": right[row.method][top_p.BUDGETS.index(row.at[0])]} for row in table]
    assert study.chosen_exponent(table, found)["method"] == "sgl+diversity=1"


def test_adaptive_rows_stand_for_their_mean() -> None:
    (row,) = study.adaptive({"0.09": {"top_p": 0.25}})
    assert (row.method, row.keep, row.layer, row.at) == ("sgl+diversity=1+top_p=0.25+floor=0.045", 0.18, 0, (0.09,))
    options = extras(row.method, 0.9)
    assert options == {"diversity": 1, "top_p": 0.25, "floor": 0.045}


def test_top_p_is_the_largest_that_keeps_no_more_than_the_budget() -> None:
    """Of 100 tokens one holds half of all and the others equal parts: 10 hold 0.5 + 9 / 198."""
    grid = plain_grid(10, 10)
    layout = SampleLayout(torch.arange(100), (ImageSpan(0, torch.arange(100), 100, grid.grid, grid.xy),))
    scores = torch.tensor([99.0] + [1.0] * 99)
    found, kept = top_p.chosen([(scores, layout)], 0.1)
    assert kept == 0.1
    assert found == pytest.approx(0.5 + 9 / 198, abs=1e-4)


def test_the_committed_choices_of_guided_diversity() -> None:
    choice = json.loads((study.RESULTS / "diversity.json").read_text())
    assert choice["about"]["task"] == "scenes-validation"
    means = {name: sum(found.values()) / len(found) for name, found in choice["tried"].items()}
    assert choice["method"] == DIVERSE
    assert means[DIVERSE] == max(means.values())
    adaptive = json.loads((study.RESULTS / "top_p.json").read_text())
    assert adaptive["about"]["split"] == "validation"
    for budget, found in adaptive["budgets"].items():
        assert 0.97 * float(budget) <= found["kept"] <= float(budget)


def test_the_committed_choice_saw_validation_questions_and_is_the_best() -> None:
    choice = json.loads((study.RESULTS / "fastv_layers.json").read_text())
    assert choice["about"]["task"] == "scenes-validation"
    assert TASKS["scenes-validation"].split == "validation"
    for at, layer in choice["layers"].items():
        assert choice["tried"][at][str(layer)] == max(choice["tried"][at].values())


def made(row: study.StudyRow, right: list[int]) -> dict[str, Any]:
    guide = 5.0 if row.method.startswith("sgl") else 0.0
    return {
        "method": row.method, "keep": None, "value": sum(right) / len(right), "scores": [float(x) for x in right],
        "bad_count": 0, "units": {"ids_sha256": "x", "above": [float(x) for x in right], "below": None},
        "costs": {"visual_tokens": 196.0, "lm_tokens": 50.0, "layer_avg_tokens": 40.0, "prefill_flops": 20.0,
                  "guide_flops": guide, "kv_bytes": 10.0},
    }  # fmt: skip


def test_records_count_the_guide_and_compare_in_pairs() -> None:
    table = study.rows(CHOICE)
    count = 8 * 5
    full, other = [1] * count, [at % 4 for at in range(count)]
    found = [made(row, full if row.method == "none" else [min(1, x) for x in other]) for row in table]
    rows = study.records(table, found)
    by = {(row["name"], tuple(row["at_retention"])): row for row in rows}
    assert by["sgl", (0.09,)]["flops_share"] == 25 / 20
    assert by["random", (0.09,)]["flops_share"] == 1
    assert by["sgl", (0.09,)]["vs_none"]["difference"] == pytest.approx(-0.25)
    assert by["sgl", (0.09,)]["vs_sgl"]["difference"] == 0
    assert by["sgl + exit", (0.09,)]["vs_small"]["difference"] == 0
    # Questions 0, 4, 8 ... are wrong, and families take turns: two of the eight get nothing.
    expected = dict.fromkeys(SCORED, 1.0) | dict.fromkeys(SCORED[::4], 0.0)
    assert by["sgl", (0.09,)]["families"] == expected
    assert (rows[0]["small_wrong"]["questions"], rows[0]["small_wrong"]["accuracy"]) == (count // 4, 1.0)
    for text in (tables.table({"rows": rows}, "at_retention"), tables.by_guide({"rows": rows}),
                 tables.by_family({"rows": rows}), tables.costs({"rows": rows})):  # fmt: skip
        for name in ("none", "small alone", "random", "uniform", "downsample", "fastv", "sgl", "sgl + exit"):
            assert f"| {name} " in text
    found[3]["units"] = {"ids_sha256": "y", "above": [1.0], "below": None}
    with pytest.raises(VlmpruneError, match="lacks questions"):
        study.records(table, found)


@only_full
def test_the_study_on_a_few_questions_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--limit", "8", "--records", str(tmp_path), "--out", str(tmp_path / "study.json")]
    assert study.main(arguments) == 0
    record = json.loads((tmp_path / "study.json").read_text())
    assert record["about"]["questions"] == 8
    assert all(row["exits"] is not None for row in record["rows"] if row["name"] == "sgl + exit")
    capsys.readouterr()
    assert study.main(arguments) == 0  # nothing is left to answer
    assert "min left" not in capsys.readouterr().err
