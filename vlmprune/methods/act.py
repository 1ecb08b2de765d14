"""ACT, attention calibration (Yu et al., ICML 2024, arXiv 2406.15765)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..attention.editor import AttentionEditor, KeyColumns
from ..attention.probe import AttentionCall
from ..attention.sink_dims import refuse_cross_attention
from ..errors import VlmpruneError
from ..flow.compact import Compaction
from ..hf.arguments import host_copies
from ..ops.attention_rows import row_chunks
from ..ops.correction import add_to_rows, calibration, column_scores, own_copy, weighted_values
from .base import Intervention
from .declared import number
from .var import ranges

if TYPE_CHECKING:
    from ..attention.observer import AttentionObserver
    from ..families import Family

LEAST_ROWS = 8  # columns seen by fewer rows are no candidates: the last ones would always look like sinks


@dataclass(frozen=True)
class ACT(Intervention):
    """Reduces attention sinks to a fraction beta of their weight, in chosen heads of layers 2..L-2.

    Unlike VAR it needs no residual stream and no image: a sink of a head is a column that gets more than `threshold`
    attention on average from the rows that see it, the first token excepted. Sinks are decided when the prompt runs
    and stay for every decoded row. All rows change, so the prompt's full attention of the chosen heads is computed, a
    part of the rows at a time.

    Departures from the official code: rows sum to one in decoding too, which they do not there; columns that few rows
    see are no candidates, or the last ones would always be sinks; that code has no search for heads, `calibrate` is
    one.

    When: as VAR, on text too: with `calibrate` on a few hundred questions of your own, and believed only on others. It
    saves nothing.

    Args:
        beta: fraction of its weight that a sink keeps; the rest goes to all other columns in proportion to theirs.
        threshold: mean attention from which a column is a sink (the paper's 0.1; 0.15 for chat).
        heads: (layer, head) pairs; None is every head of layers 2..L-2. `calibrate` finds those that help.
    Raises:
        VlmpruneError: an option out of range.
    """

    name: ClassVar[str] = "act"
    beta: float = field(default=0.4, metadata=number(float, 0, 1))
    threshold: float = field(default=0.1, metadata=number(float, 0, 1))
    heads: Sequence[tuple[int, int]] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None:
            pairs = self.heads if isinstance(self.heads, list | tuple | set | frozenset) else [()]
            pairs = [tuple(pair) if isinstance(pair, list | tuple) else () for pair in pairs]
            if not all(len(pair) == 2 and all(type(n) is int and n >= 0 for n in pair) for pair in pairs):
                raise VlmpruneError(
                    f"heads must be (layer, head) pairs of ints >= 0, or None for all, got {self.heads!r:.80}."
                )
            object.__setattr__(self, "heads", tuple(sorted({(layer, head) for layer, head in self.heads})))

    def observer(self, family: Family, model: Any) -> AttentionObserver:
        return ActEditor(self, family, model)

    def calibrate(self, model: Any, data: Iterable[tuple[Any, str, Any]], **options: Any) -> ACT:
        """Find the heads in which calibration helps: see `vlmprune.calibrate.act_heads.calibrate`.

        Returns:
            This ACT with `heads` set to those whose mean score is above that of the model as it is; maybe none.
        """
        # By name: it needs `wrap`, which needs this file.
        found: ACT = resolve_name("vlmprune.calibrate.act_heads:calibrate")(self, model, data, **options)
        return found


class ActEditor(AttentionEditor):
    """ACT on one model. Its sink masks are the sinks of the chosen heads of a layer: bool [B, heads, P]."""

    def __init__(self, method: ACT, family: Family, model: Any) -> None:
        refuse_cross_attention(family, "ACT")
        text = family.language_model(model)
        super().__init__("act", family, text)
        self.method = method
        numbers = {}
        for i in self.eligible:  # a module's own number first: layers may differ in their heads
            own = getattr(family.attention(text.layers[i]), "num_heads", None)
            numbers[i] = own or text.config.num_attention_heads
        self.heads = chosen_heads(method.heads, numbers)

    def layers(self, seeing: Sequence[int]) -> Sequence[int]:
        return list(self.heads)

    def begin(self, ids: Tensor | None, valid: Tensor | None) -> None:
        if ids is None:
            raise VlmpruneError("The prompt came as inputs_embeds without input_ids; pass input_ids to use ACT.")

    def read_prompt(self, layer: int, call: AttentionCall, columns: KeyColumns) -> None:
        if layer not in self.sink_masks:
            self.sink_masks[layer] = self._sinks(call.of_heads(self.heads[layer]), columns)

    @torch.no_grad()
    def _sinks(self, part: AttentionCall, columns: KeyColumns) -> Tensor:
        """Columns with more than `threshold` mean attention, per head: [B, heads, P]."""
        held = columns.real.shape[1]
        sums, seen = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for _, rows in row_chunks(part.query, part.key, 0):
            asked = columns.real[:, None, rows[0], None]
            sums = sums + part.weights(rows)[..., :held].masked_fill(~asked, 0.0).sum(dim=2)
            seen = seen + (part.visible(rows)[..., :held] & asked).sum(dim=2)
        first = columns.real & (columns.real.cumsum(dim=1) == 1)
        candidates = (columns.real & ~first)[:, None]
        return (column_scores(sums, seen, rows=LEAST_ROWS) > self.method.threshold) & candidates

    def edit(
        self, layer: int, call: AttentionCall, output: Tensor, sink_mask: Tensor, columns: KeyColumns | None
    ) -> Tensor:
        output, heads = own_copy(output), self.heads[layer]
        part = call.of_heads(heads)
        # Columns after the prompt, of steps and of a static cache, are no sinks.
        sinks = torch.nn.functional.pad(sink_mask, (0, call.key.shape[2] - sink_mask.shape[-1]))
        for start, rows in row_chunks(part.query, part.key, 0):
            weights = part.weights(rows, gradient=torch.is_grad_enabled())
            if columns is not None:  # rows of padding may hold NaN; with use_cache=False generated rows are edited too
                real = columns.real | columns.suffix_rows
                weights = weights.masked_fill(~real[:, None, rows[0], None], 0.0)
            change = calibration(weights, sinks, beta=self.method.beta)
            add_to_rows(output, start, weighted_values(change, part.value), None if part is call else heads)
        return output

    def gathered(self, layer: int, sink_mask: Tensor, chosen: Compaction, group: int) -> Tensor:
        index, real = chosen.index.to(sink_mask.device), chosen.real.to(sink_mask.device)
        if index.dim() == 2:
            index, real = index[:, None].expand(-1, sink_mask.shape[1], -1), real[:, None]
        else:
            own = [head // group for head in self.heads[layer]]
            index, real = index[:, own], real[:, own]
        return sink_mask.gather(-1, index) & real

    def notes(self) -> list[str]:
        if not self.heads:
            return ["ACT: no heads were chosen, so nothing was changed"]
        found = sum(int(count) for count in host_copies([sinks.sum() for sinks in self.sink_masks.values()]))
        return [f"ACT: {found} sinks in {sum(map(len, self.heads.values()))} heads of {len(self.heads)} layers"]


def chosen_heads(heads: Sequence[tuple[int, int]] | None, numbers: Mapping[int, int]) -> dict[int, list[int]]:
    """The heads to calibrate by layer, ascending; refused where layers are not eligible or the model lacks heads.

    `numbers`: how many heads each eligible layer has.
    """
    chosen: dict[int, list[int]] = {}
    every = [(layer, head) for layer, number in numbers.items() for head in range(number)]
    for layer, head in every if heads is None else heads:
        if head >= numbers.get(layer, 0):
            raise VlmpruneError(
                f"heads holds ({layer}, {head}), which cannot be calibrated; use layers "
                f"{ranges(list(numbers), ' to ')} and heads 0 to {numbers.get(layer, max(numbers.values())) - 1}."
            )
        chosen.setdefault(layer, []).append(head)
    return chosen
