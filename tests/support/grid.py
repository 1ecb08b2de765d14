"""Parametrised tests in two sizes: a short list by default, every combination with `--grid full`.

Written once, a test runs either way. `python -m tests.full` runs the full grids and keeps their records.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import pytest

VARIABLE = "VLMPRUNE_GRID"  # set by --grid in conftest.py, before any test module is imported


def full() -> bool:
    """Whether every combination is asked for."""
    return os.environ.get(VARIABLE) == "full"


def only_full(test: Any) -> Any:
    """Leave a test out by default; marked `costly`, so that CI runs just these after the short suite."""
    return pytest.mark.costly(pytest.mark.skipif(not full(), reason="costs a minute: --grid full")(test))


def only_by_hand(test: Any) -> Any:
    """Leave a test out of CI too, which has few minutes for it: `python -m tests.full` alone runs it."""
    return pytest.mark.skipif(not full(), reason="costs minutes together: python -m tests.full")(test)


def few(values: Sequence[Any], every: int) -> list[Any]:
    """Of a test's parameters all but one in `every` are left out by default, `costly` like `only_full`'s."""
    marks = [pytest.mark.costly, pytest.mark.skipif(not full(), reason="costs a minute together: --grid full")]
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*row, marks=marks if number % every else ()) for number, row in enumerate(rows)]


def either(short: Sequence[Any], whole: Sequence[Any]) -> Sequence[Any]:
    """The values of an axis: a few by default, all of them in a full run."""
    return whole if full() else short


def rows(axes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """One value of each axis a row: every value occurs, and every combination of the later axes in turn.

    There are as many rows as the longest axis has values: with the families first, each family once.
    """
    out = []
    for j in range(max(map(len, axes))):
        row, period = [axes[0][j % len(axes[0])]], 1
        for axis in axes[1:]:
            row.append(axis[(j + j // period) % len(axis)] if period % len(axis) == 0 else axis[j % len(axis)])
            period *= len(axis)
        out.append(tuple(row))
    return out


def grid(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """`parametrize` over several axes: their product in a full run, else `rows`, where the axes take turns."""
    values = [list(axis) for axis in axes.values()]
    combinations = list(itertools.product(*values)) if full() else rows(values)
    return pytest.mark.parametrize(tuple(axes), combinations, ids=["-".join(map(_label, row)) for row in combinations])


def _label(value: Any) -> str:
    return str(getattr(value, "name", value))
