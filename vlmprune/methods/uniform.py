"""uniform: every n-th visual token in raster order."""

from dataclasses import dataclass
from typing import ClassVar

from ..flow.select import Selection, every_nth
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class Uniform(Pruner):
    """Keeps evenly spaced visual tokens of every image; of a video, evenly over time, height and width.

    When: in every comparison, and where nothing but a token's place may decide. It keeps the whole image in view.
    """

    name: ClassVar[str] = "uniform"

    @property
    def by_frames(self) -> bool:
        return True

    def select(self, prompt: PruningContext) -> Selection:
        parts = self._parts(prompt)
        samples = zip(parts.layouts, self._counts(parts), strict=True)
        return Selection([every_nth(layout.images, counts) for layout, counts in samples])
