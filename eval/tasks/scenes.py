"""Our procedural scenes' test split in both worlds, with exact answers; no file is read but photographs in packages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from typing import ClassVar

from demos.tiny_vlm.photo_scenes import make_photo_scene
from demos.tiny_vlm.questions import SCORED, Question, benchmark
from demos.tiny_vlm.scenes import Scene, make_scene
from demos.tiny_vlm.vocabulary import CANVAS

from .base import Sample, Task
from .files import Folder
from .readers import Bad

EACH = 264  # questions a family; eight families give 2,112
APART = 100_000  # scenes of one family never meet those of another, so the answers are independent


def in_turns(
    count: int, split: str, *, start: int = 0, apart: int = 0, make: Callable[[int, str], Scene] = make_scene
) -> Iterator[tuple[Scene, Question]]:
    """`count` questions with their scenes, the scored families in turn, at most one question per family and scene.

    Args:
        start: the first scene's seed. apart: how many seeds further on each family starts than the one before it.
        make: draws a scene of a world from its seed and split.
    """
    streams = [
        benchmark(one, count, split, start=start + i * apart, per_scene=1, make=make) for i, one in enumerate(SCORED)
    ]
    return (next(stream) for stream in islice(cycle(streams), count))


class Scenes(Task):
    """Exact match over the families of questions, which take turns, so that any first part of them is balanced."""

    name = "scenes"
    by = "family"
    max_new_tokens = 8
    split: ClassVar[str] = "test"
    each: ClassVar[int] = EACH
    photographs: ClassVar[bool] = False
    canvas: ClassVar[int] = CANVAS  # pixels a side

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        make = partial(make_photo_scene if self.photographs else make_scene, canvas=self.canvas)
        for scene, question in in_turns(self.each * len(SCORED), self.split, apart=APART, make=make):
            name = f"{question.family}/{scene.seed}"
            about = {"family": question.family}
            yield Sample(name, question.text, scene.image, question.answer, str(scene.seed), about)


class ScenesValidation(Scenes):
    """The same of the validation split, for choices."""

    name = "scenes-validation"
    split = "validation"


class Photographs(Scenes):
    """The harder world: things on photographs, over each other and among distractors."""

    name = "photographs"
    photographs = True


class ScenesWide(Scenes):
    """Things of the same size on four times the area: 28 x 28 patches of 8 px."""

    name = "scenes-wide"
    canvas = 2 * CANVAS
    each = 64


class PhotographsWide(ScenesWide):
    """The same on photographs."""

    name = "photographs-wide"
    photographs = True
