"""Our procedural scenes' test split: the bundled pair's own benchmark, with exact answers; no file is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from vlmprune.harness.baselines import scored_families
from vlmprune.tiny.questions import benchmark

from .base import Sample, Task
from .readers import Bad, Folder

EACH = 264  # questions a family; eight families give 2,112
APART = 100_000  # scenes of one family never meet those of another, so the answers are independent


class Scenes(Task):
    """Exact match over the families of questions, which take turns, so that any first part of them is balanced."""

    name = "scenes"
    by = "family"
    max_new_tokens = 8
    split: ClassVar[str] = "test"

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        families = scored_families()
        streams = [
            benchmark(family, EACH, self.split, start=APART * i, per_scene=1) for i, family in enumerate(families)
        ]
        for several in zip(*streams, strict=True):
            for family, (scene, question) in zip(families, several, strict=True):
                name = f"{family}/{scene.seed}"
                group = str(scene.seed)
                yield Sample(name, question.text, scene.image, question.answer, group, {"family": family})


class ScenesValidation(Scenes):
    """The same of the validation split, for choices."""

    name = "scenes-validation"
    split = "validation"
