"""FrameFusion (Fu et al., ICCV 2025, arXiv 2501.01986): merge what stays the same over time, then prune."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..flow.locate import SampleLayout
from ..flow.over_time import NONE, before, changes
from ..flow.select import count_for, ranking
from .base import PruningContext
from .declared import number
from .per_image import ImageContext, PerImage, cluster_means
from .pyramiddrop import first_stage


@dataclass(frozen=True)
class FrameFusion(PerImage):
    """Merges tokens of a video with the same place before, layer after layer, and drops what is left over.

    Before each of `stages` layers a token joins the one at its place in the frame before where their hidden states have
    a cosine of `similarity` or more; a chain of these becomes its first token, at its position, with their mean. Where
    fewer than `least` of the tokens join, or at the last of the layers, the rest of the budget is found as FastV does:
    by the attention that the last prompt token pays in the layer about to run, mean over heads. Once the budget is
    reached nothing changes any more. Images have nothing to merge and are pruned at the first of the layers.

    Departures from the official code: the budget is the number of tokens that stay, not the mean cost of all layers;
    the layer that prunes is the one that found too little to merge, not the one behind it, so that its ranking is of
    states before this merging; where more tokens could join than the budget asks for, the most similar ones do.

    When: much of a video stands still, and what stands for several tokens should keep something of each.

    Args:
        layer: the first layer.
        stages: how many layers may merge.
        similarity: cosine from which on tokens are the same.
        least: fraction of the tokens below which merging ends.
    Raises:
        VlmpruneError: an option out of range, or (when wrapped) more stages than the model has layers for.
    """

    name: ClassVar[str] = "framefusion"
    reads_attention: ClassVar[bool] = True
    reads_own_layer: ClassVar[bool] = True
    keep: float | int = 0.3
    stages: int = field(default=4, metadata=number(int, 1))
    similarity: float = field(default=0.6, metadata=number(float, -1, 1))
    least: float = field(default=0.1, metadata=number(float, 0, 1))

    def stage_layers(self, layers: int, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        first = first_stage(self.layer_index(layers), self.stages, layers)
        return tuple(range(first, first + self.stages))

    def _counts(self, prompt: PruningContext, scores: Sequence[Tensor] = ()) -> list[list[int]]:
        return [[count_for(self.keep, span.count) for span in layout.images] for layout in prompt.unpruned]

    def choose(self, image: ImageContext) -> tuple[Tensor, Tensor]:
        hidden, span, prompt = image.hidden, image.span, image.prompt
        if span.count <= image.count:
            return torch.arange(span.count), hidden
        owner = joined(hidden.detach(), before(span), self.similarity, span.count - image.count)
        kept, cluster = owner.unique(return_inverse=True)
        states = cluster_means(hidden, cluster.to(hidden.device), len(kept))
        if len(owner) - len(kept) < self.least * len(owner) or prompt.stage + 1 == prompt.stages:
            received = prompt.received[image.sample][span.positions[kept].to(hidden.device)]
            best = ranking(received)[: image.count].sort().values
            kept, states = kept[best.cpu()], states[best]
        return kept, states


def joined(hidden: Tensor, earlier: Tensor, similarity: float, most: int) -> Tensor:
    """The first token of the chain that each token [V, D] belongs to: [V].

    Args:
        earlier: [V], the token at its place in the frame before. most: how many may join, the most similar ones.
    """
    alike = 1 - changes(hidden, earlier).cpu()
    alike[(earlier == NONE) | (alike < similarity)] = -torch.inf
    joins = torch.zeros(len(hidden), dtype=torch.bool)
    joins[ranking(alike)[: min(most, int((alike > -torch.inf).sum()))]] = True
    owner = torch.where(joins, earlier, torch.arange(len(hidden)))
    while not torch.equal(further := owner[owner], owner):
        owner = further
    return owner
