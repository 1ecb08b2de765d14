"""Base of methods that choose image by image, where one number a visual token is not enough.

Shapes: V visual tokens of an image, K kept, T tokens of the question, D width, S sequence.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow.locate import ImageSpan
from ..flow.prompt_state import VisionStats
from ..flow.select import Selection
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class ImageContext:
    """One image of a prompt: `span` of the visual tokens of `sample`, of which at most `count` may stay."""

    prompt: PruningContext
    sample: int
    span: ImageSpan
    count: int

    @property
    def slots(self) -> Tensor:
        """Positions 0..S-1 of its visual tokens: [V]."""
        return self.prompt.layouts[self.sample].slots[self.span.positions]

    @property
    def hidden(self) -> Tensor:
        """Hidden states of its visual tokens: [V, D]."""
        return self.prompt.hidden[self.sample, self.slots.to(self.prompt.hidden.device)]

    @property
    def question(self) -> Tensor:
        """Positions 0..S-1 of the text after the sample's last image: [T]."""
        return self.prompt.question(self.sample).to(self.prompt.hidden.device)

    @property
    def words(self) -> Tensor:
        """Hidden states of `question`: [T, D]."""
        return self.prompt.hidden[self.sample, self.question]

    @property
    def tower(self) -> VisionStats:
        """Attention received [V] and keys [V, D of the tower] in the vision tower, for methods with `reads_vision`."""
        assert self.prompt.vision is not None, "the session reads the tower for every method that sets reads_vision"
        stats = self.prompt.vision[self.sample]
        at = self.span.positions.to(stats.received.device)
        return VisionStats(stats.received[at], stats.keys[at])


class PerImage(Pruner):
    """A subclass says in `choose` which tokens of one image stay, and maybe what stands there."""

    def select(self, prompt: PruningContext) -> Selection:
        kept, merged, merges = [], [], False
        for sample, (layout, counts) in enumerate(zip(prompt.layouts, self._counts(prompt), strict=True)):
            indices, states = [torch.zeros(0, dtype=torch.long)], [prompt.hidden[sample, :0]]
            for span, count in zip(layout.images, counts, strict=True):
                chosen = self.choose(ImageContext(prompt, sample, span, count))
                if isinstance(chosen, tuple):
                    chosen, state = chosen
                    states.append(state)
                    merges = True
                indices.append(span.positions[chosen.cpu()])
            kept.append(torch.cat(indices))
            merged.append(torch.cat(states))
        return Selection(kept, merged if merges else None)

    @abstractmethod
    def choose(self, image: ImageContext) -> Tensor | tuple[Tensor, Tensor]:
        """What stays of an image: [K] ascending indices 0..V-1 with K <= `image.count`.

        A method that merges tokens also returns the hidden states that take their places, [K, D].
        """


def cosine(rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """Cosine similarities of rows [U, D] to columns [V, D], or each other: [U, V], in fp64 as greedy steps subtract."""
    unit = torch.nn.functional.normalize(rows.double(), dim=-1)
    return unit @ (unit if columns is None else torch.nn.functional.normalize(columns.double(), dim=-1)).T


def cluster_means(states: Tensor, cluster: Tensor, number: int) -> Tensor:
    """Means of states [V, D] by cluster 0..`number`-1 [V]: [number, D], 0 for an empty cluster.

    Summed in fp32: bf16 sums over a hundred tokens lose two digits.
    """
    total = torch.zeros(number, states.shape[1], device=states.device).index_add(0, cluster, states.float())
    return (total / cluster.bincount(minlength=number).clamp(min=1)[:, None]).to(states.dtype)
