"""The bundled pair and what is made of it, once for each module."""

from __future__ import annotations

from typing import Any

import pytest

import vlmprune
from tests.serving.support import KEEP
from vlmprune.serving.encoder import Encoder


@pytest.fixture(scope="module")
def pair() -> Any:
    return vlmprune.load_tiny()


@pytest.fixture(scope="module")
def uniform(pair: Any) -> Encoder:
    """An encoder that needs no guide."""
    large, _, processor = pair
    return Encoder(large, "uniform", keep=KEEP, processor=processor)
