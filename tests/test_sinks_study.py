"""A small run of the study of the bundled pair's sinks, so that the script stays runnable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.sinks_study import changed, row, study
from tests.support.grid import only_full

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@only_full
def test_a_small_run_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(json.dumps(study(questions=2, prompts=1, calibration=1, folder=tmp_path)))
    assert "min left" in capsys.readouterr().err
    assert json.loads(json.dumps(study(questions=2, prompts=1, calibration=1, folder=tmp_path))) == record
    assert "min left" not in capsys.readouterr().err
    assert record["rows"]["none"]["changed_answers"] == 0
    assert {"var", "act, all heads", "act, calibrated heads", "random", "small alone"} < record["rows"].keys()
    assert record["rows"]["none"]["flops_share"] == 1 > record["rows"]["uniform"]["flops_share"]
    for name in ("large", "small"):
        found = record["sinks"][name]
        assert len(found["visual_sinks_a_layer"]) == len(found["phi_of_the_first_token"])
    if not record["sinks"]["large"]["sink_dims"]:
        assert record["rows"]["var"]["changed_answers"] == 0


def test_changes_are_counted_pair_by_pair() -> None:
    found = row(["a", "b", "c", "d"], ["a", "x", "y", "right"], ["a", "b", "z", "right"])
    assert (found["accuracy"], found["changed_answers"], found["gained"], found["lost"]) == (0.5, 3, 1, 1)
    change = changed(found, 4)
    assert (change.difference, change.p) == (0.0, 1.0)
    lost = changed({"gained": 0, "lost": 4}, 2000)
    assert lost.difference == -0.002
    assert lost.p == pytest.approx(2 / 2**4, abs=0.01)  # the sign test of four, not the two standard errors of 2,000
