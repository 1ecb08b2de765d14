"""Which `top_p` keeps as many tokens on average as a fixed budget, from validation questions only.

    python -m eval.sgl.top_p --out eval/sgl/results/top_p.json

Adaptive and fixed budgets are compared at equal means: an image keeps from half the budget to twice the budget.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import ClassVar

from torch import Tensor

import vlmprune
from eval.provenance import provenance, write_record
from eval.tasks.base import Sample
from eval.tasks.scenes import ScenesValidation
from vlmprune.flow.locate import SampleLayout
from vlmprune.flow.select import top_p_counts
from vlmprune.harness.measure import backend
from vlmprune.methods.base import PruningContext

BUDGETS = (0.18, 0.09, 0.05)
QUESTIONS = 400
HALVINGS = 30


def bounds(budget: float) -> tuple[float, float]:
    """The floor and the ceiling of an adaptive budget."""
    return budget / 2, min(1.0, 2 * budget)


@dataclass(frozen=True)
class KeepsImportance(vlmprune.SGL):
    """SGL that keeps the importance of every prompt."""

    found: ClassVar[list[tuple[Tensor, SampleLayout]]] = []

    def score(self, prompt: PruningContext) -> list[Tensor]:
        scores = super().score(prompt)
        self.found.extend(zip(scores, prompt.layouts, strict=True))
        return scores


def chosen(found: list[tuple[Tensor, SampleLayout]], budget: float) -> tuple[float, float]:
    """The largest `top_p` that keeps at most `budget` on average, and what it keeps."""

    def kept(top_p: float) -> float:
        floor, keep = bounds(budget)
        return mean(
            sum(top_p_counts(scores, layout.images, top_p, floor, keep)) / layout.count for scores, layout in found
        )

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) <= budget else (low, middle)
    rounded = math.floor(low * 10_000) / 10_000
    return rounded, kept(rounded)


def main() -> None:
    """Measure the guide's importance on validation questions, and write one `top_p` a budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    large, small, processor = vlmprune.load_tiny()
    first = islice(ScenesValidation().samples(Path("data")), args.questions)
    samples = [one for one in first if isinstance(one, Sample)]
    with vlmprune.wrap(large, KeepsImportance(small, keep=1), processor=processor) as pruned:
        for sample in samples:
            pruned.ask(sample.load_image(), sample.prompt, max_new_tokens=ScenesValidation.max_new_tokens)
    rows = {}
    for budget in BUDGETS:
        top_p, kept = chosen(KeepsImportance.found, budget)
        rows[f"{budget:g}"] = {"top_p": top_p, "kept": kept}
    about = provenance(model="the bundled pair", backend=backend(large), split="validation", questions=len(samples))
    write_record({"about": about, "budgets": rows}, args.out)


if __name__ == "__main__":
    main()
