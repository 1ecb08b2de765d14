"""uniform: every n-th visual token in raster order."""

from dataclasses import dataclass
from typing import ClassVar

from ..flow.select import Selection, every_nth
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class Uniform(Pruner):
    """Keeps evenly spaced visual tokens of every image."""

    name: ClassVar[str] = "uniform"

    def select(self, prompt: PruningContext) -> Selection:
        return Selection([every_nth(layout.images, self.keep) for layout in prompt.layouts])
