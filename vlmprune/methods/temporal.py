"""temporal: what a video shows that it did not show before, as EVS prunes (Bagrov et al., 2025, arXiv 2510.14624)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.locate import ImageSpan
from ..flow.over_time import NONE, before, changes, kept_order, spread_order
from ..flow.select import count_for
from .base import Pruner, PruningContext

AGAINST = ("previous", "kept")
FIRST = 1e6  # above every score of a token that has one before it


@dataclass(frozen=True)
class Temporal(Pruner):
    """Keeps a video's first frame, and of the others the tokens that differ most from the same place before.

    The score is 1 - cosine of the projected features, over the whole video, whatever is asked. Tokens of no frame
    (LLaVA-OneVision's newline) stay, and images keep evenly spread tokens.

    Departures from the official code: the budget is that of every method here, so it may be less than one
    frame, of which evenly spread tokens then stay; equal features tie, and the earlier one stays.

    When: much of a video stands still, and what is asked is not known or about all of it.

    Args:
        against: "previous", the frame before, as EVS does: where little changes from frame to frame, slow drift is
            never seen. "kept" (ours): the last kept token at the place; tokens are kept one after the other, each time
            the one that differs most.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "temporal"
    against: str = "previous"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.against not in AGAINST:
            raise VlmpruneError(f"against={self.against!r:.60} is unknown; use {' or '.join(map(repr, AGAINST))}.")

    def score(self, prompt: PruningContext) -> list[Tensor]:
        scores = []
        for sample, layout in enumerate(prompt.layouts):
            hidden = prompt.hidden[sample].detach()
            own = torch.zeros(layout.count, dtype=torch.float64)
            for span in layout.images:
                rows = hidden[layout.slots[span.positions].to(hidden.device)]
                own[span.positions] = self._of_span(rows, span).cpu()
            scores.append(own.to(hidden.device))
        return scores

    def _of_span(self, hidden: Tensor, span: ImageSpan) -> Tensor:
        earlier = before(span)
        first = (earlier == NONE).nonzero()[:, 0]
        if self.against == "previous":
            score = changes(hidden, earlier).cpu()
        else:
            # Other budgets than the whole video's may ask for any of them.
            shared = self.frames == "shared" and self.top_p is None
            score = kept_order(hidden, span, count_for(self.keep, span.count) if shared else span.count)
        score[first] = FIRST + spread_order(len(first))
        if span.frame is not None:
            score[span.frame == NONE] += 1
        return score
