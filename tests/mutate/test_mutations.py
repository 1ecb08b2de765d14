"""Every mutation still fits the code, and there are enough of them where a wrong line would be a wrong number."""

from __future__ import annotations

import json

import pytest

from .__main__ import RECORD, ROOT, place
from .mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name[:60])
def test_a_mutation_fits(mutation: Mutation) -> None:
    place(mutation)
    assert mutation.old != mutation.new
    assert all((ROOT / path).exists() for path in mutation.tests)


def test_there_are_enough_and_each_once() -> None:
    assert len(MUTATIONS) >= 60
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    rooms = {mutation.function.partition(":")[0].split(".")[1] for mutation in MUTATIONS}
    assert {"flow", "ops", "methods", "guide", "runtime", "captioner", "scorers"} <= rooms


def test_every_mutation_was_noticed() -> None:
    """By the committed run; whoever adds or changes a mutation runs them again."""
    record = json.loads(RECORD.read_text())
    assert not record["dirty"]
    explained = {mutation.name for mutation in MUTATIONS if mutation.equal}
    unnoticed = [mutation.name for mutation in MUTATIONS if record["mutations"].get(mutation.name) != "killed"]
    assert set(unnoticed) <= explained, "run python -m tests.mutate from a clean tree, and commit its record"
