"""Calibration on the bundled pair: the curve against counting by hand, the choice against the whole list."""

from __future__ import annotations

import json
import random

import pytest

import vlmprune
from demos.tiny_vlm.questions import ask
from demos.tiny_vlm.scenes import make_scene
from tests.support.grid import only_full
from vlmprune import SGL, VlmpruneError
from vlmprune.accounting.scores import exact_match, plain


@pytest.fixture(scope="module")
def setting():
    large, small, processor = vlmprune.load_tiny()
    data = []
    for seed in range(12):
        scene = make_scene(seed, "validation")
        question = ask(scene, random.Random(seed).choice(["colour", "shape", "existence"]), random.Random(seed))
        if question is not None:
            data.append((scene.image(), question.text, [question.answer]))
    return large, small, processor, data


@pytest.fixture(scope="module")
def found(setting):
    large, small, processor, data = setting
    return SGL(small, keep=0.2).calibrate(
        large, data, processor=processor, max_accuracy_loss=0.5, keeps=[0.2, 10], cost="flops", max_new_tokens=4
    )


def test_the_curve_is_what_counting_gives(setting, found):
    large, small, processor, data = setting
    assert {p.keep for p in found.points} == {0.2, 10}
    assert all(p.samples == len(data) for p in found.points)
    for exit_at in (None, 0.0, found.points[len(found.points) // 4].exit_at):
        right, exits = [], []
        with vlmprune.wrap(large, SGL(small, keep=0.2, exit_at=exit_at), processor=processor) as pruned:
            for image, question, truths in data:
                answer = pruned.ask(image, question, max_new_tokens=4)
                right.append(exact_match(answer.text, truths))
                exits.append(answer.report.exited[0])
        point = next(p for p in found.points if (p.keep, p.exit_at) == (0.2, exit_at))
        assert point.accuracy == pytest.approx(sum(right) / len(right))
        assert point.exits == pytest.approx(sum(exits) / len(exits))
        assert point.low <= point.accuracy <= point.high
    assert found.guide_alone.accuracy == next(p for p in found.points if p.exit_at == 0.0).accuracy


def test_the_choice_is_the_cheapest_within_the_loss(found):
    good = [p for p in found.points if p.accuracy >= found.unpruned.accuracy - 0.5]
    assert found.chosen.cost == min(p.cost for p in good)
    assert isinstance(found.method, SGL)
    assert (found.method.keep, found.method.exit_at) == (found.chosen.keep, found.chosen.exit_at)


def test_forms(found):
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["chosen"]["samples"] == found.chosen.samples
    assert "unpruned" in str(found)


@only_full
def test_a_limit_on_cost(setting):
    large, small, processor, data = setting
    method = SGL(small, keep=0.2)
    options = {"processor": processor, "cost": "flops", "max_new_tokens": 4}
    found = method.calibrate(large, data[:6], max_cost=0.9, **options)
    assert found.chosen.cost <= 0.9
    with pytest.raises(VlmpruneError, match="cheapest costs"):
        method.calibrate(large, data[:2], max_cost=1e-6, **options)
    with pytest.raises(VlmpruneError, match="No setting loses only -1"):
        method.calibrate(large, data[:2], max_accuracy_loss=-1, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "either max_accuracy_loss= or max_cost="),
        ({"max_cost": 1, "max_accuracy_loss": 0}, "either max_accuracy_loss= or max_cost="),
        ({"max_cost": 1, "keeps": []}, "keeps=[]"),
        ({"max_cost": 1, "cost": "euros"}, "got 'euros'"),
        ({"max_cost": 1, "data": []}, "is empty"),
        ({"max_cost": 1, "data": [("a", "b")]}, "Sample 0"),
    ],
)
def test_bad_input(setting, options, words):
    large, small, processor, data = setting
    data = options.pop("data", data)
    with pytest.raises(VlmpruneError) as error:
        SGL(small).calibrate(large, data, processor=processor, **options)
    assert words in str(error.value)


def test_exact_match_sees_no_case_no_spaces_and_no_full_stop():
    assert plain("  Yes. ") == plain("yes")
    assert exact_match("Yes.", "yes") == 1.0
    assert exact_match("", ["yes", "no"]) == 0.0
    assert exact_match("no", ["yes", "No"]) == 1.0
