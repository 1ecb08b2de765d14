"""What is known of one prompt while its layers run; observers, pruners and the report read it. There is no model in it.

Shapes: B batch, S sequence before pruning, C after, V visual tokens of a sample, H heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from .compact import Compaction
from .locate import SampleLayout
from .stage import Stage, remaining


@dataclass(frozen=True)
class VisionStats:
    """What one layer of the vision tower says about one sample: the last used one, unless a method reads another.

    `received` [V]: attention from the class token (without one: from all tokens), mean over heads. `keys` [V, D]: mean
    over heads, or all heads' behind each other where a method takes heads as one.
    """

    received: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Rows:
    """Where the positions of a prompt stand in its output; everything on the CPU.

    `valid` [B, S]: the padding mask. `chosen`: what is left after the last pruning layer, None where nothing was
    dropped.
    """

    valid: Tensor
    chosen: Compaction | None = None

    @property
    def kept(self) -> Tensor:
        """Bool [B, S]: the real positions that have a row."""
        if self.chosen is None:
            return self.valid
        return torch.zeros_like(self.valid).scatter(1, self.chosen.index, self.chosen.real)

    @property
    def where(self) -> Tensor:
        """[B, S]: the row of each position.

        One that was dropped, or is padding behind the prompt, has that of the nearest kept position before it, which
        predicts what comes next; padding before the prompt, that of the first.
        """
        if self.chosen is None:
            return torch.arange(self.valid.shape[1]).expand(len(self.valid), -1)
        order = self.kept.cumsum(1)
        return self.chosen.index.shape[1] - order[:, -1:] + (order - 1).clamp(min=0)

    def positions(self) -> list[Tensor]:
        """Per sample, ascending, the positions that have a row."""
        return [row.nonzero()[:, 0] for row in self.kept]

    def check(self, sample: Tensor, position: Tensor) -> None:
        """Refuse positions whose row was dropped."""
        gone = (self.valid & ~self.kept)[sample, position]
        if bool(gone.any()):
            raise VlmpruneError(
                f"logits_to_keep asks for position {int(position[gone][0])} of sample {int(sample[gone][0])}, a visual "
                "token that was dropped and has no logits; ask for positions that report.rows lists."
            )


@dataclass(eq=False, kw_only=True)
class PromptState:
    """One prompt: where its visual tokens are, what was read of it, and what its pruning layers have left.

    `input_ids`, `valid` (the padding mask) [B, S] and `layouts` are on the CPU, and so is all that is computed from
    them: a GPU is asked once per prompt for its ids and once per stage for what was kept. `device` is where the ids
    came from. With use_cache=False, positions from `prompt_length` on were generated. `cross_attention`: the visual
    tokens are keys of cross-attention layers, `cross_columns` of them unpruned, padding tiles included. `reindexed`:
    kept tokens get new position ids.

    What was read: `importance`, a guide's, per sample [V]; `vision`, the tower's, per sample; `query_positions`, per
    sample the positions whose attention counts; `attention` [B, S or cross states] and `keys` [B, H, S, D] of the layer
    before the current stage. `stages`: one for each pruning layer so far. `cache`: which the layers fill, from the
    first of them until the prompt's forward ends. `last_rows`: the first layer from which on only the last rows run,
    and how many, where the language model leaves the others out. `sources`: of every layer the one whose keys it
    attends to, empty where each has its own.
    """

    input_ids: Tensor
    valid: Tensor
    layouts: list[SampleLayout]
    device: torch.device
    prompt_length: int
    cross_attention: bool = False
    reindexed: bool = False
    importance: list[Tensor] | None = None
    vision: list[VisionStats] | None = None
    query_positions: list[Tensor] | None = None
    attention: Tensor | None = None
    keys: Tensor | None = None
    cross_columns: int = 0
    stages: list[Stage] = field(default_factory=list)
    cache: Any = None
    last_rows: tuple[int, int] | None = None
    sources: Sequence[int] = ()

    @property
    def has_image(self) -> bool:
        """Whether any sample has visual tokens."""
        return any(layout.count for layout in self.layouts)

    def stage_at(self, layer: int) -> Stage | None:
        """The last stage before or at a decoder layer."""
        return next((stage for stage in reversed(self.stages) if stage.layer <= layer), None)

    def held_at(self, layer: int) -> Stage | None:
        """The stage of the keys that a decoder layer attends to."""
        return self.stage_at(self.sources[layer] if self.sources else layer)

    @property
    def chosen(self) -> Compaction | None:
        """What is left after all stages, on the CPU; None where nothing was dropped."""
        return self.stages[-1].on_host if self.stages else None

    @property
    def rows(self) -> Rows:
        """What the last layers saw; the keys of cross attention are no rows."""
        return Rows(self.valid, None if self.cross_attention else self.chosen)

    @property
    def prompt_valid(self) -> Tensor:
        """The padding mask [B, S] less what comes after the prompt: generated tokens, or candidates for them."""
        return self.valid & (torch.arange(self.valid.shape[1]) < self.prompt_length)

    @property
    def length(self) -> int:
        """Of the sequence as the stages so far have left it."""
        chosen = None if self.cross_attention else self.chosen
        return self.valid.shape[1] if chosen is None else chosen.index.shape[1]

    def inverse(self) -> Tensor:
        """[B, S]: where each position of the unpruned sequence stands now (0 for those that are gone)."""
        positions = torch.arange(self.valid.shape[1]).expand(len(self.valid), -1)
        if self.chosen is None:
            return positions
        index, real = self.chosen.index, self.chosen.real
        # Fillers point at dropped positions, which real ones never share: writing 0 there does no harm.
        return torch.zeros_like(positions).scatter(1, index, torch.arange(index.shape[1]) * real)

    def columns_of(self, layer: int) -> Tensor | None:
        """[B, C]: where the rows that are left stand among the keys that a layer attends to; None where these are of
        the same rows."""
        held = self.held_at(layer)
        if self.chosen is None or held is self.stages[-1]:
            return None
        index = self.chosen.index
        if held is None or held.on_host is None:
            return index
        order = torch.arange(held.on_host.index.shape[1]) * held.on_host.real
        return torch.zeros_like(self.input_ids).scatter(1, held.on_host.index, order).gather(1, index)

    def left(self) -> tuple[list[SampleLayout], Tensor, Tensor]:
        """Layouts, ids [B, C] and padding mask [B, C] of the prompt as the stages so far have left it."""
        if self.chosen is None:
            return self.layouts, self.input_ids, self.prompt_valid
        where, index = self.inverse(), self.chosen.index
        layouts = [
            remaining(layout, kept, where[row])
            for row, (layout, kept) in enumerate(zip(self.layouts, self.stages[-1].kept, strict=True))
        ]
        valid = torch.gather(self.prompt_valid, 1, index) & self.chosen.real
        return layouts, torch.gather(self.input_ids, 1, index), valid
