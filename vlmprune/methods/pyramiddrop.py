"""PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): fewer visual tokens from stage to stage of the depth."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..errors import VlmpruneError
from ..flow.locate import SampleLayout
from ..flow.select import count_for
from .base import Pruner, PruningContext
from .declared import number


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Drops in stages; at each the tokens that the last prompt token would attend to least in the next layer.

    As in the official code that is the attention of the layer before which a stage drops: its norm and projections of
    the states that enter it, all tokens of the stage before among them, mean over heads.

    `keep` is what is left after the last stage, and every stage keeps the same fraction of what is there: the default,
    an eighth after three, is the paper's half at each of L/4, L/2 and 3L/4.

    Departures from the official code: budgets are rounded half up instead of down, each of several images has its own,
    kept tokens keep their positions (there they are renumbered; see `positions`), and in training too the last prompt
    token ranks (there those before each answer).

    When: early layers must see everything and dropping at once costs accuracy: it drops in stages, and so saves less.

    Args:
        layer: the first stage; the others are spread evenly over the layers behind it.
        stages: how many.
    Raises:
        VlmpruneError: no stage at all, or (when wrapped) more than the model has layers for.
    """

    name: ClassVar[str] = "pyramiddrop"
    reads_attention: ClassVar[bool] = True
    reads_own_layer: ClassVar[bool] = True
    keep: float | int = 0.125
    layer: int | float = 0.25
    stages: int = field(default=3, metadata=number(int, 1))

    def stage_layers(self, layers: int, layouts: list[SampleLayout] | None = None) -> tuple[int, ...]:
        first = first_stage(self.layer_index(layers), self.stages, layers)
        return tuple(first + (layers - first) * stage // self.stages for stage in range(self.stages))

    def score(self, prompt: PruningContext) -> list[Tensor]:
        return prompt.received

    def _counts(self, prompt: PruningContext, scores: Sequence[Tensor] = ()) -> list[list[int]]:
        return staged_counts(self.keep, prompt)


def first_stage(first: int, stages: int, layers: int) -> int:
    """The layer of the first of several stages, `first`, behind which the others must have layers of their own."""
    if first + stages > layers:
        raise VlmpruneError(
            f"stages={stages} from layer {first} on do not fit into {layers} decoder layers; use fewer stages or a "
            "lower layer."
        )
    return first


def staged_counts(keep: float | int, prompt: PruningContext) -> list[list[int]]:
    """How many tokens of each image of each sample the present stage leaves."""
    return [
        [staged_count(keep, span.count, prompt.stage, prompt.stages) for span in layout.images]
        for layout in prompt.unpruned
    ]


def staged_count(keep: float | int, visual: int, stage: int, stages: int) -> int:
    """How many of an image's `visual` tokens are left after a stage (0-based); each stage drops the same fraction."""
    last = count_for(keep, visual)
    return count_for((last / visual) ** ((stage + 1) / stages), visual) if stage + 1 < stages else last
