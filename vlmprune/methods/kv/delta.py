"""DELTA (arXiv 2510.09883): in each step a few layers choose the pages of the cache that the layers after them read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...attention.probe import AttentionCall
from ...errors import VlmpruneError
from ...flow.entries import page_index
from ..declared import number
from .base import CacheReader

BREAK_EVEN = 3  # entries in the cache for one that is read, from which on gathering them pays on a CPU


@dataclass(frozen=True)
class Delta(CacheReader):
    """Nothing leaves the cache; in each step most layers read a part of it, chosen anew by the layer that selects.

    The first `full` layers read everything. A selecting layer does too, and ranks pages of `page` neighbouring entries
    by its attention to them: of each entry the most that any head gives, summed over the page. It hands the best
    `pages` on, the last `recent` among them, and the layers up to the next selecting one read these alone. A step over
    less than three times as many entries reads everything, since gathering would take longer.

    Departures from the official code: by default the second and third selecting layer lie at a half and at 11 / 14 of
    the depth, as in its 28 layers, instead of where a calibration finds them. A layer whose cache holds other entries
    than the selecting one's, as behind a pruner, selects by itself. PyTorch gathers the entries; there is no kernel.

    When: very long answers, where a step's attention outweighs its linear maps and nothing may leave the cache.

    Args:
        pages: how many pages a layer reads.
        page: entries of a page.
        recent: pages at the end that are always read.
        full: layers at the start that read everything.
        selecting: decoder layers that select; None is the first after these, and those at a half and at 11 / 14 of the
            depth.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "delta"
    pages: int = field(default=64, metadata=number(int, 1))
    page: int = field(default=16, metadata=number(int, 1))
    recent: int = field(default=8, metadata=number(int, 1))
    full: int = field(default=2, metadata=number(int, 0))
    selecting: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent > self.pages:
            raise VlmpruneError(f"recent={self.recent} pages are more than the {self.pages} of pages; use less.")
        if self.selecting is not None:
            if not isinstance(self.selecting, list | tuple) or any(type(i) is not int or i < 0 for i in self.selecting):
                raise VlmpruneError(f"selecting must be a list of ints >= 0 or None, got {self.selecting!r:.60}.")
            object.__setattr__(self, "selecting", tuple(sorted(set(self.selecting))))

    def selector(self, readers: Sequence[int], depth: int) -> "DeltaSelector":
        return DeltaSelector(self, readers, depth)

    def selectors(self, readers: Sequence[int], depth: int) -> set[int]:
        """The layers that select, of those with a cache that grows.

        Raises:
            VlmpruneError: one of them has none, or reads everything anyway.
        """
        late = list(readers)[self.full :]
        if self.selecting is not None:
            if wrong := [i for i in self.selecting if i not in late]:
                raise VlmpruneError(
                    f"selecting holds {wrong[0]}, which cannot select; choose of {', '.join(map(str, late)) or 'none'}."
                )
            return set(self.selecting)
        wanted = (0, depth // 2, round(depth * 11 / 14))
        return {next((i for i in late if i >= at), late[-1]) for at in wanted} if late else set()


class DeltaSelector:
    """A `Delta` in the steps of one call: a `StepSelector`; arguments as `CacheReader.selector`'s."""

    def __init__(self, method: Delta, readers: Sequence[int], depth: int) -> None:
        self.method, self.selecting = method, method.selectors(readers, depth)
        self.first = list(readers)[method.full] if len(readers) > method.full else depth
        self.attended: dict[int, int] = {}
        self._stages: Mapping[int, int | None] = {}
        self._index: Tensor | None = None
        self._of: tuple[int, int | None] | None = None

    def begin(self, stages: Mapping[int, int | None]) -> None:
        """Nothing has been selected yet."""
        self._stages, self._index, self._of = stages, None, None

    def exchange(self, layer: int, call: AttentionCall) -> AttentionCall:
        """The call that takes the place of a layer's: over the pages that were selected, or as it is."""
        length, method = call.key.shape[2], self.method
        short = length < BREAK_EVEN * method.pages * method.page
        self.attended[layer] = length
        if call.query.shape[2] != 1 or short or not call.narrows() or layer < self.first:
            return call
        held = length, self._stages.get(layer)
        if layer in self.selecting or self._of != held:
            rows = torch.zeros(len(call.query), 1, dtype=torch.long, device=call.query.device)
            weights = call.weights(rows).amax(dim=1)[:, 0]
            self._index, self._of = selected(weights, method.page, method.pages, method.recent), held
            return call
        index = self._index
        assert index is not None, "a layer with these entries has selected"
        self.attended[layer] = index.shape[1]
        return call.of_entries(index)


def selected(weights: Tensor, page: int, pages: int, recent: int) -> Tensor:
    """The entries of the best pages, ascending: [B, K].

    Args:
        weights: [B, T], more than `pages` pages of them; the last page may be shorter.
    """
    length = weights.shape[1]
    number = -(-length // page)
    scores = pad(weights, (0, number * page - length)).unflatten(1, (number, page)).sum(dim=-1)
    return page_index(scores, page, pages, recent, length)
