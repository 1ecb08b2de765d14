"""Every mutation still fits the code, and there are enough of them where a wrong line would be a wrong number."""

from __future__ import annotations

import pytest

from .__main__ import ROOT, place
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
