"""PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): fewer visual tokens from stage to stage of the depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.locate import SampleLayout
from ..flow.score import visual_columns
from ..flow.select import Selection, count_for, top_k_per_image
from .base import Pruner, PruningContext


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Drops in stages; at each the tokens that the last prompt token attends to least in the layer before.

    `keep` is what is left after the last stage, and every stage keeps the same fraction of what is there: the default,
    an eighth after three, is the paper's half at each of L/4, L/2 and 3L/4.

    Args:
        layer: the first stage; the others are spread evenly over the layers behind it.
        stages: how many.
    Raises:
        VlmpruneError: no stage at all, or (when wrapped) more than the model has layers for.
    """

    name: ClassVar[str] = "pyramiddrop"
    reads_attention: ClassVar[bool] = True
    keep: float | int = 0.125
    layer: int | float = 0.25
    stages: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or self.stages < 1:
            raise VlmpruneError(f"stages={self.stages!r} is no number of stages; use 1 or more.")

    def stage_layers(self, layers: int, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        first = self.layer_index(layers)
        if first + self.stages > layers:
            raise VlmpruneError(
                f"stages={self.stages} from layer {first} on do not fit into {layers} decoder layers; use fewer stages "
                "or a lower layer."
            )
        return tuple(first + (layers - first) * stage // self.stages for stage in range(self.stages))

    def select(self, prompt: PruningContext) -> Selection:
        assert prompt.attention is not None, "the session probes every method that sets reads_attention"
        scored = enumerate(visual_columns(prompt.attention, prompt.layouts))
        return Selection([staged_top(scores, prompt, sample, self.keep) for sample, scores in scored])


def staged_top(scores: Tensor, prompt: PruningContext, sample: int, keep: float | int) -> Tensor:
    """The best-scored tokens [K] of every image of a sample, as many as its stage leaves, in ascending order."""
    images, whole = prompt.layouts[sample].images, prompt.unpruned[sample].images
    parts = [
        top_k_per_image(scores, [span], staged_count(keep, full.count, prompt.stage, prompt.stages))
        for span, full in zip(images, whole, strict=True)
    ]
    return torch.cat(parts).sort().values if parts else torch.zeros(0, dtype=torch.long)


def staged_count(keep: float | int, visual: int, stage: int, stages: int) -> int:
    """How many of an image's `visual` tokens are left after a stage (0-based); each stage drops the same fraction."""
    last = count_for(keep, visual)
    return count_for((last / visual) ** ((stage + 1) / stages), visual) if stage + 1 < stages else last
