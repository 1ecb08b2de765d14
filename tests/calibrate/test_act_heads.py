"""ACT.calibrate: keeps what helps, goes on where it stopped, and leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import vlmprune
from tests.support.running import outside


@pytest.fixture(scope="module")
def pair():
    large, _, processor = vlmprune.load_tiny()
    return large, processor


DATA = [(*vlmprune.tiny.example(), ["black"])]


class Stopped(Exception):
    """The run is killed."""


class Scores:
    """Scores handed out in turn: first the model as it is, then head after head."""

    def __init__(self, *values: float) -> None:
        self.values, self.asked = iter(values), 0

    def __call__(self, answer: str, right: object) -> float:
        self.asked += 1
        for value in self.values:
            return value
        raise Stopped


def test_heads_that_help_are_kept_and_a_stopped_run_goes_on(pair, tmp_path: Path) -> None:
    model, processor = pair
    path = tmp_path / "act.json"
    with vlmprune.wrap(model, "none", processor=processor) as pruned:
        pruned.ask(*DATA[0][:2], max_new_tokens=1)  # transformers itself sets things up on a model's first forward
    before = outside(model)
    stops = Scores(0.5, 0.6, 0.4)  # stopped at the third head
    method = vlmprune.ACT(beta=0.3)
    options = {"processor": processor, "path": path, "max_new_tokens": 1}
    with pytest.raises(Stopped):
        method.calibrate(model, DATA, score=stops, **options)
    assert outside(model) == before
    assert json.loads(path.read_text())["scores"] == {"none": 0.5, "2.0": 0.6, "2.1": 0.4}
    rest = Scores(0.5, 0.7, *[0.1] * 14)
    found = method.calibrate(model, DATA, score=rest, **options)
    assert rest.asked == 16  # 18 heads in layers 2 to 4, two of them known
    assert found == vlmprune.ACT(beta=0.3, heads=((2, 0), (2, 3)))
    again = method.calibrate(model, DATA, score=Scores(), **options)
    assert again == found
    with pytest.raises(vlmprune.VlmpruneError, match="another model, other questions or other options"):
        vlmprune.ACT(beta=0.2).calibrate(model, DATA, **options)
    path.write_text("no json")
    with pytest.raises(vlmprune.VlmpruneError, match="cannot be read as a calibration file"):
        method.calibrate(model, DATA, **options)


def test_nothing_helps_is_an_empty_list_and_changes_nothing(pair) -> None:
    model, processor = pair
    with vlmprune.wrap(model, "act", processor=processor) as pruned:
        found = vlmprune.ACT().calibrate(pruned, DATA, score=lambda answer, right: 1.0, max_new_tokens=1)
        assert pruned.active
        assert pruned.ask(*DATA[0][:2], max_new_tokens=1).report.method["name"] == "act"
    assert found.heads == ()
    with vlmprune.wrap(model, found, processor=processor) as pruned:
        assert "no heads were chosen" in pruned.ask(*DATA[0][:2], max_new_tokens=1).report.notes[0]


def test_bad_input(pair) -> None:
    model, processor = pair
    with pytest.raises(vlmprune.VlmpruneError, match="pass processor="):
        vlmprune.ACT().calibrate(model, DATA)
    with pytest.raises(vlmprune.VlmpruneError, match=r"Sample 1 .* make every one \(image, question, answers\)"):
        vlmprune.ACT().calibrate(model, [*DATA, ("image", "question")], processor=processor)
    with pytest.raises(vlmprune.VlmpruneError, match="data is empty"):
        vlmprune.ACT().calibrate(model, [], processor=processor)
