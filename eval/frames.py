"""Baselines of every table about videos: fewer frames and smaller frames at the tokens of a budget, and one frame.

A method that drops tokens of a clip has to beat what a user does without it. Tokens are counted in the prompt that the
model's own processor makes of a clip, since families differ in what they make of its frames.
"""

from __future__ import annotations

from typing import Any

import torch

from vlmprune.errors import VlmpruneError
from vlmprune.families import family_of
from vlmprune.flow.select import count_for
from vlmprune.inputs.chat import tokenize, user_turn
from vlmprune.inputs.video import Clip

FEWER, SMALLER, ONE = "fewer-frames", "smaller-frames", "one-frame"
STEPS = 12  # halvings of a scale: a side of 4,000 pixels is then found to the pixel


class FewerFrames:
    """Clips as these baselines show them to one model. Counts are kept by the number and size of frames."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.processor = processor
        self.ids = torch.tensor(family_of(model).visual_ids(model.config))
        self._counts: dict[tuple[int, int, int], int] = {}
        self._scales: dict[tuple[int, int, int, int], float] = {}

    def shown(self, clip: Clip, row: str, keep: float | int | None) -> Clip:
        """A clip as a row of a table shows it.

        Raises:
            VlmpruneError: the row cannot come down to the budget.
        """
        if row == ONE or keep is None:
            return clip.thinned(1)
        budget = count_for(keep, self.tokens(clip))
        return self._fewer(clip, budget) if row == FEWER else self._smaller(clip, budget)

    def tokens(self, clip: Clip) -> int:
        """Visual tokens of a clip's prompt."""
        key = (len(clip.frames), *clip.frames[0].size)
        if key not in self._counts:
            ids = tokenize(self.processor, user_turn([clip], "?"))["input_ids"]
            self._counts[key] = int(torch.isin(ids, self.ids).sum())
        return self._counts[key]

    def _fewer(self, clip: Clip, budget: int) -> Clip:
        """The most evenly spaced frames whose tokens are within the budget."""
        low, high = 0, len(clip.frames)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.tokens(clip.thinned(middle)) <= budget else (low, middle - 1)
        if not low:
            raise VlmpruneError(
                f"one frame of the clip is {self.tokens(clip.thinned(1))} tokens, more than the budget of {budget}; "
                "give more --frames, or a larger --keep"
            )
        return clip.thinned(low)

    def _smaller(self, clip: Clip, budget: int) -> Clip:
        """All frames, as large as the budget allows."""
        key = (len(clip.frames), *clip.frames[0].size, budget)
        if key not in self._scales:
            low, high = 0.0, 1.0
            for _ in range(STEPS):
                middle = (low + high) / 2
                low, high = (middle, high) if self.tokens(clip.scaled(middle)) <= budget else (low, middle)
            self._scales[key] = 1.0 if self.tokens(clip) <= budget else low
        if not (scale := self._scales[key]):
            raise VlmpruneError(
                f"however small the frames, the clip is more than the budget of {budget} tokens in this model, of "
                f"{self.tokens(clip)}; give a larger --keep"
            )
        return clip.scaled(scale)
