"""Planted models: what a proof says of VAR, FastV, SGL, random pruning and ACT's calibration is what they do."""

from __future__ import annotations

from typing import Any

import pytest

import vlmprune
from eval import planted
from tests.support.grid import full


@pytest.fixture(scope="module")
def processor() -> Any:
    return vlmprune.load_tiny()[2]


COUNT = 100 if full() else 3


def test_empty_sinks(processor: Any) -> None:
    found = planted.empty_sinks(processor, COUNT)
    assert found["risen"] == COUNT
    assert found["moved_at_p_0"] == 0
    assert found["off_by_hand"] < 2e-3  # the norms' epsilons
    assert found["least_gain"] > 0.1


def test_looking_heads(processor: Any) -> None:
    found = planted.looking_heads(processor, COUNT)
    assert found["fastv"] == found["sgl"] == {"kept": COUNT, "right": COUNT}
    assert found["random"]["kept"] == found["random"]["right"]
    if full():
        assert found["random"]["kept"] <= 20


def test_sinks_that_matter(processor: Any) -> None:
    found = planted.sinks_that_matter(processor, 2)
    assert found["full"] == {"heads": [], "none": 2, "every head": 0, "calibrated": 2}
    assert found["empty"] == {"heads": [[planted.READS, 0]], "none": 0, "every head": 2, "calibrated": 2}
