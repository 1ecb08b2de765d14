"""What several tests of the harness share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import eval.worker
import vlmprune
from vlmprune.harness.models import Models


@pytest.fixture(scope="module")
def loaded_once() -> Iterator[None]:
    """Every run of the module uses one bundled pair."""
    large, small, processor = vlmprune.load_tiny()
    models = Models("the bundled large model", large, processor, "the bundled small model", small, processor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.worker, "load_models", lambda *names, **options: models)
        yield
