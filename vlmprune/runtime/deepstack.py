"""DeepStack: features of the vision tower are added to visual rows at several decoder layers, not just at the input.

Shapes: B batch, S sequence before pruning, C after, N visual tokens of the batch, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..flow.stage import Stage


@dataclass(frozen=True)
class DeepStack:
    """`visual` [B, S]: where visual tokens are. `levels`: by layer, features [N, D] of them all. `before`: whether they
    are added to the input of that layer (Granite 4 Vision) instead of its output (Qwen3-VL)."""

    visual: Tensor
    levels: Mapping[int, Tensor]
    before: bool = False

    def add(self, layer: int, hidden: Tensor, stage: Stage | None) -> Tensor | None:
        """The input or output [B, S or C, D] of a layer with its level added, `stage` being the last pruning layer that
        has cut it; None where the layer has none."""
        if layer not in self.levels:
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


def taken(kwargs: dict[str, Any]) -> tuple[DeepStack | None, dict[str, Any]]:
    """What a language model is given to add at its layers, and its arguments without that; None where it is given none.

    Two conventions: `visual_pos_masks` [B, S] with a list of features for the first layers, added to their output; and
    `vision_mask` [B, S, 1] with a dict of features by layer, added to its input.
    """
    rest = dict(kwargs)
    if kwargs.get("deepstack_visual_embeds") is not None:
        return DeepStack(rest.pop("visual_pos_masks"), dict(enumerate(rest.pop("deepstack_visual_embeds")))), rest
    if isinstance(kwargs.get("deepstack_features"), Mapping):
        return DeepStack(rest.pop("vision_mask")[..., 0], rest.pop("deepstack_features"), before=True), rest
    return None, kwargs
