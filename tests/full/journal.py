"""A pytest plugin: one line a finished test in a journal, passed ones left out when a cut run is started again.

It watches which families and methods were wrapped while a test ran, so that a record says what really ran.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.provenance import provenance
from tests.full.grids import RECORDS, ROOT
from vlmprune.methods.combined import parts_of
from vlmprune.runtime.session import Session

VARIABLE = "VLMPRUNE_JOURNAL"
_wrapped: set[tuple[str, str]] = set()
_BEGAN = pytest.StashKey[float]()


def _cpu() -> float:
    """Processor seconds of this process and the children it has waited for."""
    return sum(os.times()[:4])


def fingerprint() -> str:
    """Of the package and its tests: results of other code are no results."""
    digest = hashlib.sha256()
    for path in sorted(file for folder in ("vlmprune", "tests") for file in (ROOT / folder).rglob("*")):
        if path.is_file() and path.suffix != ".pyc" and RECORDS not in path.parents:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def read(journal: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The journal's head and the last line of each test; a line torn by a kill is left out."""
    head: dict[str, Any] = {}
    tests: dict[str, dict[str, Any]] = {}
    for text in journal.read_text().splitlines() if journal.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "test" in line:
            tests[line["test"]] = line
        else:
            head = line
    return head, tests


def _append(line: dict[str, Any]) -> None:
    journal = Path(os.environ[VARIABLE])
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    attach = Session.attach

    def noted(self: Session) -> None:
        _wrapped.update((self.family.model_type, part.name) for part in parts_of(self.method))
        attach(self)

    Session.attach = noted
    if hasattr(config, "workerinput"):
        return
    journal = Path(os.environ[VARIABLE])
    now = {"code": fingerprint(), **provenance()}
    head, _ = read(journal)
    if [head.get(key) for key in ("code", "transformers", "torch")] != [
        now[key] for key in ("code", "transformers", "torch")
    ]:
        journal.unlink(missing_ok=True)
        _append(now)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = {name for name, line in read(Path(os.environ[VARIABLE]))[1].items() if line["outcome"] != "failed"}
    left = [item for item in items if item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = left


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _wrapped.clear()
    item.stash[_BEGAN] = _cpu()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if report.when == "call":
        report.user_properties += [("wrapped", sorted(_wrapped)), ("cpu", round(_cpu() - item.stash[_BEGAN], 2))]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # the controlling process writes
        return
    if report.when == "call" or report.outcome != "passed":
        seen = {"wrapped": [], "cpu": 0.0} | dict(report.user_properties)
        _append({"test": report.nodeid, "outcome": report.outcome, **seen})
