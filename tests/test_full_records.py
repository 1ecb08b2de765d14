"""The full grids were run over everything that is registered: whoever adds a family or method runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import vlmprune
from tests.full.__main__ import summary
from tests.full.grids import GRIDS, OLDEST_PINS, RECORDS, ROOT
from tests.full.journal import read
from tests.test_package import PROJECT
from vlmprune.hf.compatibility import NEWEST, OLDEST

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
    version = OLDEST if GRIDS[name].pins else NEWEST
    assert found["transformers"].startswith(f"{version}."), RUN.format(name)
    assert all((ROOT / path).exists() for path in GRIDS[name].tests)


@pytest.mark.parametrize(("name", "adapters"), [("families", {"declared", "generic"}), ("oldest", {"declared"})])
def test_every_family_was_run(name: str, adapters: set[str]) -> None:
    """The oldest transformers lacks many of the types that go through the generic adapter."""
    wanted = {family for family, adapter in vlmprune.list_families().items() if adapter in adapters}
    assert sorted(wanted - set(record(name)["families"])) == [], RUN.format(name)


@pytest.mark.parametrize("names", [("methods", "families", "kv"), ("oldest", "kv-oldest")], ids="+".join)
def test_every_method_was_run(names: tuple[str, ...]) -> None:
    built_in = {name for name, cls in vlmprune.list_methods().items() if cls.__module__.startswith("vlmprune.")}
    ran = {method for name in names for method in record(name)["methods"]}
    assert sorted(built_in - ran) == [], RUN.format(names[0])


def test_the_oldest_versions_are_those_that_are_declared() -> None:
    pins = dict(line.split("==") for line in OLDEST_PINS.read_text().splitlines() if "==" in line)
    assert pins["transformers"].startswith(f"{OLDEST}.")
    ranges = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    assert all(ranges[name].contains(pin) for name, pin in pins.items() if name in ranges)


def test_a_torn_journal_is_read_and_summed_up(tmp_path: Path) -> None:
    """What a killed run leaves: the last line of a test counts, half a line does not, a test's own method neither."""
    head = {"commit": "c", "dirty": False, "transformers": "5", "torch": "2", "machine": "m"}
    lines = [
        head,
        {"test": "a", "outcome": "failed", "wrapped": [["llava", "fastv"]], "cpu": 30.0},
        {"test": "a", "outcome": "passed", "wrapped": [["llava", "fastv"], ["llava", "planted"]], "cpu": 30.0},
        {"test": "b", "outcome": "failed", "wrapped": [["gemma3", "fastv"]], "cpu": 30.0},
        {"test": "c", "outcome": "skipped", "wrapped": [], "cpu": 0.0},
    ]
    journal = tmp_path / "one.jsonl"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"test": "d", "outc')
    found = summary("one", *read(journal))
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert found["failed"] == ["b"]
    assert found["families"] == {"llava": {"fastv": 1}}
    assert found["methods"] == {"fastv": {"llava": 1}}
    assert found["cpu_minutes"] == 1.0
