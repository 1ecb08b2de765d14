"""The examples of the tab Ask, which are answered before anybody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...inputs.images import read_image
from ...tiny import example, questions

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Thumbnail:
    """An example of the tab Ask: `number` of the bundled question, None for that of `vlmprune ask`."""

    title: str
    number: int | None
    method: str
    keep: float
    truth: str  # the right answer

    @property
    def code(self) -> tuple[str, str]:
        """What a script imports for the image, and the expression that gives it."""
        if self.number is None:
            return "from vlmprune.tiny import example", "example()[0]"
        return "from vlmprune.tiny import questions", f'questions()[{self.number}]["image"]'

    def asked(self) -> tuple[Image.Image, str]:
        """The image and the question."""
        if self.number is None:
            return example()
        one = questions()[self.number]
        return read_image(one["image"]), one["question"]


# The first saves time even with models this small, since tokens go before layer 0. The others were found by asking all
# 96 bundled questions unpruned and with SGL at 0.25, 0.1 and 0.05: number 75 alone is answered rightly without pruning
# and wrongly at 0.25, the default; of those that all four answer rightly, FastV at 0.05 gets number 22 wrong.
THUMBNAILS = (
    Thumbnail("A quarter is enough", None, "visionzip", 0.25, "black"),
    Thumbnail("One in twenty is enough", 22, "sgl", 0.05, "0"),
    Thumbnail("Here pruning fails", 75, "sgl", 0.25, "5"),
)
