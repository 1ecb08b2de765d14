"""FastV (Chen et al., ECCV 2024, arXiv 2403.06764, section 4): rank by the last prompt token's attention."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Pruner, PruningContext


@dataclass(frozen=True)
class FastV(Pruner):
    """Keeps the visual tokens that the last prompt token attends to most in the layer before, mean over heads.

    `layer` is the paper's K (default 2): attention is read in layer K-1, tokens are dropped before layer K. The
    attention comes from the probe, so the model keeps its fused kernel. `exclude_sinks` ranks visual sinks last:
    tokens that draw attention whatever the question is, found in the residual stream entering layer K.

    When: the question must decide what stays, no second model is at hand, and the first layers may cost full price. The
    usual baseline of papers.

    Raises:
        VlmpruneError: layer 0, before which no attention exists.
    """

    name: ClassVar[str] = "fastv"
    reads_attention: ClassVar[bool] = True
    layer: int | float = 2
    exclude_sinks: bool = False

    def score(self, prompt: PruningContext) -> list[Tensor]:
        if prompt.sinks is None:
            return prompt.received
        return [
            scores.masked_fill(sinks.to(scores.device), -1.0)
            for scores, sinks in zip(prompt.received, prompt.sinks, strict=True)
        ]
