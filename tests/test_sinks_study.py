"""A small run of the study of the bundled pair's sinks, so that the script stays runnable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.sinks_study import row, study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_a_small_run_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(json.dumps(study(questions=2, prompts=1, calibration=1, folder=tmp_path)))
    assert "min left" in capsys.readouterr().err
    assert json.loads(json.dumps(study(questions=2, prompts=1, calibration=1, folder=tmp_path))) == record
    assert "min left" not in capsys.readouterr().err
    assert record["rows"]["none"]["changed_answers"] == 0
    assert {"var", "act, all heads", "act, calibrated heads"} < record["rows"].keys()
    for name in ("large", "small"):
        found = record["sinks"][name]
        assert len(found["visual_sinks_a_layer"]) == len(found["phi_of_the_first_token"])
    if not record["sinks"]["large"]["sink_dims"]:
        assert record["rows"]["var"]["changed_answers"] == 0


def test_changes_are_counted_pair_by_pair() -> None:
    found = row(["a", "b", "c", "d"], ["a", "x", "y", "right"], ["a", "b", "z", "right"])
    assert (found["accuracy"], found["changed_answers"], found["gained"], found["lost"]) == (0.5, 3, 1, 1)
    assert found["change"] == 0.0
    assert found["change_standard_error"] == pytest.approx((0.5 / 4) ** 0.5)
