"""Tiny models are faster on one thread than on two, and every test starts from the same random state."""

from __future__ import annotations

import os

# Before any tokenizer or model is loaded: nothing may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

from tests.support.grid import VARIABLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--grid", choices=("short", "full"), help="each family once (the default), or every combination: tests/full/"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # A deadline for each example fails on a busy machine.
    hypothesis.settings.register_profile("suite", deadline=None)
    hypothesis.settings.load_profile("suite")
    if (chosen := config.getoption("--grid")) is not None:
        os.environ[VARIABLE] = chosen


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
