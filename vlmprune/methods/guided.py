"""Pruning by what another run made of the visual tokens: the base of SGL and of the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import VlmpruneError
from ..flow.locate import SampleLayout
from ..flow.select import count_for
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class GuideSettings:
    """What a guided method says about its guide; `vlmprune.guide.runner.guide_for` makes it ready to run.

    `model`: the guide, None = the pruned model itself. `processor`: the guide's, where it is not the model's.
    `exit_at`: S from which the guide's answer is taken, None = never. `steps`: rank from at most this many of its
    tokens, None = all. `check`: whether to measure consistency; `normalise`: as the geometric mean of the answer
    tokens' probabilities, else their product. `exclude_sinks`: give the guide's visual sinks no importance. `runner`: a
    `Guide` that is ready already.
    """

    model: Any = None
    processor: Any = None
    exit_at: float | None = None
    steps: int | None = None
    check: bool = True
    normalise: bool = True
    exclude_sinks: bool = False
    runner: Any = None


@dataclass(frozen=True)
class Guided(Pruner):
    """Keeps the visual tokens of highest `PruningContext.importance`, which the session was given for this prompt.

    `layer=None` is SGL's rule: as deep as the budget is large, `int(keep * L)`; with tokens per image as the budget,
    the fraction is that of the batch, sum(K) / sum(V).
    """

    reads_question: ClassVar[bool] = True
    layer: int | float | None = None  # type: ignore[assignment]  # None is a rule, not a layer

    def check_layer(self) -> None:
        if self.layer is not None:
            super().check_layer()

    def layer_for(self, layers: int, layouts: list[SampleLayout]) -> int:
        if self.layer is not None or isinstance(self.keep, float):
            return self.layer_index(layers)
        visual = sum(layout.count for layout in layouts)
        return min(layers - 1, int(sum(self.counts(layouts)) / visual * layers)) if visual else 0

    def layer_index(self, layers: int) -> int:
        if self.layer is not None:
            return super().layer_index(layers)
        # keep=1.0 drops nothing anywhere; the last layer stands for "no layer".
        return min(layers - 1, int(self.keep * layers)) if isinstance(self.keep, float) else 0

    def score(self, prompt: PruningContext) -> list[Tensor]:
        if prompt.importance is None:
            raise VlmpruneError(
                f"The method {self.name or type(self).__name__!r} needs its guide's ranking, which only calls of the "
                "whole model bring; call model(...) or model.generate(...), not a part of the model."
            )
        return prompt.importance

    def counts(self, layouts: list[SampleLayout]) -> list[int]:
        """How many visual tokens each sample keeps."""
        return [sum(count_for(self.keep, span.count) for span in layout.images) for layout in layouts]

    def guide_settings(self) -> GuideSettings:
        """The model whose attention ranks the visual tokens, and how it is run."""
        raise NotImplementedError(f"{type(self).__name__} needs guide_settings()")
