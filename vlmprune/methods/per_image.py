"""Base of methods that choose image by image, where one number a visual token is not enough.

Shapes: V visual tokens of an image, K kept, T tokens of the question, D width, S sequence.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
        """Hidden states of its visual tokens: [V, D]; where they stand side by side no copy."""
        slots, hidden = self.slots, self.prompt.hidden[self.sample]
        if int(slots[-1]) - int(slots[0]) == len(slots) - 1:
            return hidden[int(slots[0]) : int(slots[-1]) + 1]
        return hidden[slots.to(hidden.device)]

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

    @property
    def by_frames(self) -> bool:
        own = type(self)
        return self.ranks or (own.select, own._counts) == (PerImage.select, Pruner._counts)

    def select(self, prompt: PruningContext) -> Selection:
        kept, merged, merges = [], [], False
        parts = self._parts(prompt)
        for sample, (layout, counts) in enumerate(zip(parts.layouts, self._counts(parts), strict=True)):
            indices, states = [torch.zeros(0, dtype=torch.long)], [prompt.hidden[sample, :0]]
            for span, count in zip(layout.images, counts, strict=True):
                if not count:  # a frame that keeps nothing
                    continue
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


WHOLE = 1024  # tokens of which the similarities to each other are made at once: 8 MiB in fp64
_LARGE = 1 << 24  # numbers of which a second copy is made in fp64: 128 MiB
_NOTHING = 1e-12  # of two squared lengths: what products of thousands of numbers leave of no distance
ROUGH = 1e-5  # what a cosine in fp32 is off at most
_BLOCK = 1024  # tokens on a side of a block of cosines: 8 MiB in fp64
_ALL = 1 << 28  # bytes of cosines that are remembered: of 8,192 tokens in fp32
_NUMBERS = 1 << 21  # in fp64 at a time, of more: 16 MiB


def cosine(rows: Tensor, columns: Tensor | None = None) -> Tensor:
    """Cosine similarities of rows [U, D] to columns [V, D], or each other: [U, V], in fp64 as greedy steps subtract."""
    if columns is None:
        unit = unit_rows(rows)
        return unit @ unit.T
    if rows.numel() > max(_LARGE, columns.numel()):
        return cosine(columns, rows).T
    unit = unit_rows(rows)
    if columns.numel() <= _LARGE:
        return unit @ unit_rows(columns).T
    return torch.cat([unit @ unit_rows(part).T for part in columns.split(part_size(columns.shape[1]))], dim=1)


def distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Euclidean distances of rows [U, D] to columns [V, D]: [U, V], 0 where they are within rounding; both fp64."""
    squares = (rows**2).sum(dim=1)[:, None] + (columns**2).sum(dim=1)
    gap = torch.addmm(squares, rows, columns.T, alpha=-2)
    return gap.masked_fill_(gap < _NOTHING * squares, 0).sqrt_()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows [V, D] at length 1, in fp64 and without a second copy of so many."""
    parts = rows.split(part_size(rows.shape[1]))
    if len(parts) == 1:
        return normalize(rows.double(), dim=-1)
    unit = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    for part, own in zip(parts, unit.split(part_size(rows.shape[1])), strict=True):
        own.copy_(normalize(part.double(), dim=-1))
    return unit


def rough_unit_rows(rows: Tensor) -> Tensor:
    """Rows [V, D] at length 1, in fp32: for bounds on cosines, which are off by less than `ROUGH`."""
    unit = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    for part, own in zip(rows.split(part_size(rows.shape[1])), unit.split(part_size(rows.shape[1])), strict=True):
        own.copy_(normalize(part.float(), dim=-1))
    return unit


def room_for_all(unit: Tensor) -> Tensor | None:
    """Where all cosines of unit vectors [V, D] to each other can be remembered; None where they are too many."""
    fit = unit.element_size() * len(unit) ** 2 <= _ALL
    return unit.new_empty(len(unit), len(unit)) if fit else None


def pair_blocks(unit: Tensor, whole: Tensor | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Cosines of unit vectors [V, D] to each other, block by block from the diagonal up: rows, columns, cosines.

    They are written to `whole` [V, V] too, on both sides of the diagonal.
    """
    parts = [slice(at, min(at + _BLOCK, len(unit))) for at in range(0, len(unit), _BLOCK)]
    for i, rows in enumerate(parts):
        for columns in parts[i:]:
            near = unit[rows] @ unit[columns].T
            if whole is not None:
                whole[rows, columns], whole[columns, rows] = near, near.T
            yield rows, columns, near


def pair_rows(unit: Tensor, whole: Tensor | None) -> Callable[[Tensor], Tensor]:
    """From indices [b] to cosines with all unit vectors: [b, V], read from `whole` where `pair_blocks` wrote it."""
    return whole.__getitem__ if whole is not None else lambda some: unit[some] @ unit.T


def part_size(width: int) -> int:
    """How many rows of `width` numbers are worked on at a time."""
    return max(1, _NUMBERS // max(1, width))


def cluster_means(states: Tensor, cluster: Tensor, number: int) -> Tensor:
    """Means of states [V, D] by cluster 0..`number`-1 [V]: [number, D], 0 for an empty cluster.

    Summed in fp32: bf16 sums over a hundred tokens lose two digits.
    """
    total = torch.zeros(number, states.shape[1], device=states.device).index_add(0, cluster, states.float())
    return (total / cluster.bincount(minlength=number).clamp(min=1)[:, None]).to(states.dtype)
