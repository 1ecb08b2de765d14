"""DeepStack (Qwen3-VL): features of the vision tower are added to the visual rows after the first decoder layers.

Shapes: B batch, S sequence before pruning, C after, N visual tokens of the batch, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..flow.stage import Stage


class DeepStack:
    """`visual` [B, S]: where visual tokens are. `levels`: for each of the first layers, features [N, D] of them all."""

    def __init__(self, visual: Tensor, levels: Sequence[Tensor]) -> None:
        self.visual, self.levels = visual, levels

    def add(self, layer: int, hidden: Tensor, stage: Stage | None) -> Tensor | None:
        """The output [B, S or C, D] of a layer with its level added, `stage` being the last pruning layer so far; None
        where the layer has none."""
        if layer >= len(self.levels):
            return None
        visual = self.visual.to(hidden.device)
        ordinal = (visual.flatten().cumsum(0) - 1).view_as(visual)  # features are in the order of the visual tokens
        if stage is not None and stage.chosen is not None:
            chosen = stage.chosen.to(hidden.device)
            ordinal = torch.gather(ordinal, 1, chosen.index)
            visual = torch.gather(visual, 1, chosen.index) & chosen.real
        hidden = hidden.clone()
        hidden[visual] = hidden[visual] + self.levels[layer].to(hidden.device, hidden.dtype)[ordinal[visual]]
        return hidden
