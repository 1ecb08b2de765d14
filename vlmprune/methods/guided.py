"""Pruning by what another run made of the visual tokens: the base of SGL and of the oracle."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import VlmpruneError
from ..flow.locate import SampleLayout
from ..flow.select import count_for
from .base import Pruner, PruningContext


class GuideOptions:
    """The guide of a method and how it runs. No fields, and no dataclass: `SGL` makes options of them."""

    guide: Any = None  # None: the pruned model itself
    guide_processor: Any = None  # where it is not the model's
    exit_at: float | None = None  # exit score from which the guide's answer is taken; None: never
    guide_steps: int | None = None  # rank from at most this many of its tokens; None: all
    guide_frames: int | None = None  # show it at most so many frames of each clip; None: all
    guide_scale: float | None = None  # make these frames' sides so much shorter; None: as they are
    guide_keep: float | int | None = None  # drop the guide's own visual tokens halfway; None: none
    normalise_consistency: bool = True
    measure_consistency: bool = True
    exclude_sinks: bool = False  # give the guide's visual sinks no importance
    runner: Any = None  # a `Guide` that is ready already


@dataclass(frozen=True)
class Guided(Pruner, GuideOptions):
    """Keeps the visual tokens of highest `PruningContext.importance`, which the session was given for this prompt.

    `layer=None` is SGL's rule: as deep as the budget is large, `int(keep * L)`; with tokens per image as the budget,
    the fraction is that of the batch, sum(K) / sum(V).
    """

    reads_question: ClassVar[bool] = True
    layer: int | float | None = None  # type: ignore[assignment]  # None is a rule, not a layer

    def layer_for(self, layers: int, layouts: list[SampleLayout]) -> int:
        if self.layer is not None or isinstance(self.keep, float):
            return self.layer_index(layers)
        counts = [span.count for layout in layouts for span in layout.images]
        kept = sum(count_for(self.keep, count) for count in counts)
        return min(layers - 1, int(kept / sum(counts) * layers)) if counts else 0

    def layer_index(self, layers: int) -> int:
        if self.layer is not None:
            return super().layer_index(layers)
        # keep=1.0 drops nothing anywhere; the last layer stands for "no layer".
        return min(layers - 1, int(self.keep * layers)) if isinstance(self.keep, float) else 0

    def score(self, prompt: PruningContext) -> list[Tensor]:
        if prompt.importance is None:
            raise VlmpruneError(
                f"The method {self.title!r} needs its guide's ranking, which only calls of the "
                "whole model bring; call model(...) or model.generate(...), not a part of the model."
            )
        return prompt.importance
