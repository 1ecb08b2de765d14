"""What older versions of transformers get wrong without us, so that no pruned run can be right: tests skip it there."""

from __future__ import annotations

import pytest
import transformers
from packaging.version import Version

VERSION = Version(transformers.__version__)


def wrong_before(version: str, fault: str) -> None:
    """Skip the test on versions in which the unwrapped model has this fault (measured on 5.14, 5.16, 5.17, 5.18)."""
    if Version(version) > VERSION:
        pytest.skip(f"transformers {VERSION} without us: {fault}")
