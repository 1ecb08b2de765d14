"""One pruning layer of a prompt: what it decided, and what that makes of the layouts and the sequence.

Shapes: B batch, S sequence before pruning, C after, V visual tokens of a sample, K kept, D width.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .compact import Compaction
from .locate import SampleLayout


@dataclass
class Stage:
    """What was decided at one layer.

    `kept`: per sample, ascending indices into all of its visual tokens. `chosen`: these and the text as positions of
    the unpruned sequence, on the layer's device, None while nothing was dropped; `on_host` is its copy on the CPU.
    `inner` [B, C]: the same as positions of the sequence that entered the layer. `merged` and `places`: per sample,
    states [K, D] that take the kept tokens' places there. Everything else is on the CPU too.
    """

    layer: int
    kept: list[Tensor]
    chosen: Compaction | None = None
    on_host: Compaction | None = None
    inner: Tensor | None = None
    merged: list[Tensor] | None = None
    places: list[Tensor] = field(default_factory=list)


def remaining(layout: SampleLayout, kept: Tensor, where: Tensor) -> SampleLayout:
    """A sample's layout with only the visual tokens `kept` [K] (indices 0..V-1), numbered anew; `where` [S] is the
    position now of every position of the unpruned sequence."""
    images = []
    for span in layout.images:
        mine = torch.isin(span.positions, kept)
        images.append(replace(span.only(mine), positions=torch.searchsorted(kept, span.positions[mine])))
    return SampleLayout(where[layout.slots[kept]], tuple(images))


def merged(hidden: Tensor, stage: Stage) -> Tensor:
    """The sequence that enters the stage's layer, with merged states in the kept tokens' places."""
    if stage.merged is not None:
        hidden = hidden.clone()
        for row, (places, states) in enumerate(zip(stage.places, stage.merged, strict=True)):
            hidden[row, places.to(hidden.device)] = states.to(hidden.device, hidden.dtype)
    return hidden
