"""knorm: visual tokens with small keys (Devoto et al., EMNLP 2024, arXiv 2406.11430), a baseline from text caches."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..flow.score import visual_columns
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class KNorm(Pruner):
    """Keeps the tokens whose keys in the layer before have the smallest L2 norm, over all heads together.

    When: in comparisons: a rule that was made for caches of text.
    """

    name: ClassVar[str] = "knorm"
    reads_keys: ClassVar[bool] = True
    layer: int | float = 2

    def score(self, prompt: PruningContext) -> list[Tensor]:
        assert prompt.keys is not None, "the session reads keys for every method that sets reads_keys"
        return visual_columns(-prompt.keys.float().pow(2).sum(dim=(1, 3)), prompt.layouts)
