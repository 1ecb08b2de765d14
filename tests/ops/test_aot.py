"""Every kernel compiles to a cubin without a GPU, and needs no more of it than was committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.aot import ARCHITECTURES, Variant, compiled, variants, version
from tests.support.grid import grid

BUDGETS = json.loads((Path(__file__).parent / "budget.json").read_text())
VARIANTS = variants()


@grid(variant=VARIANTS, architecture=ARCHITECTURES)
def test_compiles_within_its_budget(variant: Variant, architecture: int) -> None:
    needs = compiled(variant, architecture)
    assert version() in BUDGETS, "measure this Triton: python -m tests.ops.aot --out tests/ops/budget.json"
    budget = BUDGETS[version()][variant.name][f"sm_{architecture}"]
    assert needs["cubin"] > 0
    assert needs["spills"] == 0
    assert needs["registers"] <= budget["registers"]
    assert needs["shared"] <= budget["shared"]


@pytest.mark.parametrize("triton", BUDGETS)
def test_the_budget_lists_every_variant_once_and_no_spills(triton: str) -> None:
    budget = BUDGETS[triton]
    assert list(budget) == [variant.name for variant in VARIANTS]
    assert {arch for needs in budget.values() for arch in needs} == {f"sm_{a}" for a in ARCHITECTURES}
    assert not any(need["spills"] for needs in budget.values() for need in needs.values())
