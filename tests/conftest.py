"""Tiny models are faster on one thread than on two, and every test starts from the same random state."""

from __future__ import annotations

import os

# Before any tokenizer or model is loaded: nothing may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
