"""The full grids were run over everything that is registered: whoever adds a family or method runs them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from packaging.requirements import Requirement

import vlmprune
from tests.full.grids import GRIDS, OLDEST_PINS, RECORDS, ROOT
from tests.test_package import PROJECT
from vlmprune.runtime.compatibility import NEWEST, OLDEST

RUN = "run python -m tests.full {}, and commit its record"


def record(name: str) -> dict[str, Any]:
    path = RECORDS / f"{name}.json"
    assert path.exists(), RUN.format(name)
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_has_a_record_without_failures(name: str) -> None:
    found = record(name)
    assert found["failed"] == [], RUN.format(name)
    assert found["tests"]["passed"] > 0
    assert found["commit"] and found["date"] and found["torch"]
    version = OLDEST if name == "oldest" else NEWEST
    assert found["transformers"].startswith(f"{version}."), RUN.format(name)
    assert all((ROOT / path).exists() for path in GRIDS[name].tests)


@pytest.mark.parametrize("name", ["families", "oldest"])
def test_every_family_was_run(name: str) -> None:
    assert sorted(set(vlmprune.families()) - set(record(name)["families"])) == [], RUN.format(name)


@pytest.mark.parametrize("names", [("methods", "families"), ("oldest",)], ids="+".join)
def test_every_method_was_run(names: tuple[str, ...]) -> None:
    built_in = {name for name, cls in vlmprune.methods().items() if cls.__module__.startswith("vlmprune.")}
    ran = {method for name in names for method in record(name)["methods"]}
    assert sorted(built_in - ran) == [], RUN.format(names[0])


def test_the_oldest_versions_are_those_that_are_declared() -> None:
    pins = dict(line.split("==") for line in OLDEST_PINS.read_text().splitlines() if "==" in line)
    assert pins["transformers"].startswith(f"{OLDEST}.")
    ranges = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    assert all(ranges[name].contains(pin) for name, pin in pins.items() if name in ranges)
