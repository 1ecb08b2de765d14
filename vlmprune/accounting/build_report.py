"""From a finished prompt to its report."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..flow.locate import SampleLayout
from ..flow.prompt_state import PromptState
from ..flow.stage import Stage
from ..methods.base import Method
from .cache_report import CacheReport
from .flops import ModelCost
from .report import Report


def prompt_report(
    state: PromptState,
    method: Method,
    cost: ModelCost,
    repeats: int,
    last_rows: tuple[int, int] | None = None,
    cut: CacheReport | None = None,
) -> Report:
    """The report of a prompt whose forward just ended; of `repeats` equal rows (beams) the first stands for all.

    `seconds` is left to the caller, who held the clock. `last_rows`: as the state's, of the model without the method.
    `cut`: of a cache that was cut.
    """
    layouts = state.layouts[::repeats]
    visual = [layout.count for layout in layouts]
    text_rows = state.valid[::repeats].sum(dim=1).tolist()
    kept = state.stages[-1].kept[::repeats] if state.stages else [torch.arange(v) for v in visual]
    # The keys of cross-attention layers are pruned, the rows of the sequence in all other families.
    cross = state.cross_attention
    full = cost.lengths(state.valid.shape[1], state.cross_columns)
    lengths, counts, rows = list(full), [visual] * len(full), [text_rows] * len(full)
    for stage in state.stages:
        if stage.chosen is None:  # nothing was dropped
            continue
        columns, left = stage.chosen.index.shape[1], text_rows if cross else rows_left(state, stage, repeats)
        stays = [len(k) for k in stage.kept[::repeats]]
        for i in range(stage.layer, len(full)):
            counts[i], rows[i] = stays, left
            if cost.layers[i].cross == cross:
                lengths[i] = columns
    seeing = [sum(each) for layer, each in zip(cost.layers, counts, strict=True) if layer.cross or not cross]
    batch = len(layouts)
    average = sum(seeing) / len(seeing) / batch
    mean_visual = sum(visual) / batch
    return Report(
        visual_tokens=visual,
        kept_tokens=[len(k) for k in kept],
        kept=kept,
        images=[[span.with_kept(k) for span in layout.images] for layout, k in zip(layouts, kept, strict=True)],
        layer_lengths=lengths,
        lm_tokens=seeing[0] / batch,
        layer_avg_tokens=average,
        retention=average / mean_visual if mean_visual else 1.0,
        prefill_flops=cost.flops(rows, counts, last_rows=state.last_rows, whole=sum(text_rows)),
        prefill_flops_full=cost.flops([text_rows] * len(full), [visual] * len(full), last_rows=last_rows),
        kv_bytes=cost.kv_bytes(lengths if cut is None else cut.per_head, batch),
        kv_bytes_full=cost.kv_bytes(full, batch),
        method=method.describe(),
        cache=cut,
        rows=state.rows.positions()[::repeats],
        notes=[] if any(visual) else ["no image in the prompt: nothing to prune, the model ran as it is"],
    )


def rows_left(state: PromptState, stage: Stage, repeats: int) -> list[Any]:
    """Per sample the rows that a stage has left: where they stood, since a window is counted in original positions, or
    how many they are where positions are re-indexed."""
    assert stage.on_host is not None, "something was dropped"
    index, real = stage.on_host.index[::repeats], stage.on_host.real[::repeats]
    if state.reindexed:
        return real.sum(dim=1).tolist()
    firsts = state.valid[::repeats].int().argmax(dim=1)
    return [own[some] - first for own, some, first in zip(index, real, firsts, strict=True)]


def exited_report(
    part: Report | None,
    running: list[int],
    layouts: list[SampleLayout],
    valid: Tensor,
    columns: int,
    method: Method,
    cost: ModelCost,
    last_rows: tuple[int, int] | None = None,
) -> Report:
    """The report of a batch of which only some samples ran: the others kept nothing and cost nothing.

    Args:
        part: of the samples that ran, which `running` names; None where none did. layouts, valid: of the batch.
        columns: keys of a sample in a cross-attention layer. last_rows: as in `prompt_report`.
    """
    batch, layers = len(layouts), len(cost.layers)
    part = part or Report([], [], [], [], [0] * layers, 0.0, 0.0, 0.0, 0, 0, 0, 0, {})
    visual = [layout.count for layout in layouts]
    rows = valid.sum(dim=1).tolist()
    kept = [torch.zeros(0, dtype=torch.long) for _ in layouts]
    seen = list(kept)
    images = [[span.with_kept(none) for span in layout.images] for layout, none in zip(layouts, kept, strict=True)]
    for place, sample in enumerate(running):
        kept[sample], images[sample], seen[sample] = part.kept[place], part.images[place], part.rows[place]
    ran = len(running) / batch
    average = ran * part.layer_avg_tokens
    return replace(
        part,
        visual_tokens=visual,
        kept_tokens=[len(k) for k in kept],
        kept=kept,
        images=images,
        lm_tokens=ran * part.lm_tokens,
        layer_avg_tokens=average,
        retention=average / (sum(visual) / batch),
        prefill_flops_full=cost.flops([rows] * layers, [visual] * layers, last_rows=last_rows),
        kv_bytes_full=cost.kv_bytes(cost.lengths(valid.shape[1], columns), batch),
        method=method.describe(),
        rows=seen,
    )


def carry(output: Any, report: Report) -> None:
    """Let what a call returns, a tensor or a model's output, carry the call's report as its attribute `report`."""
    if isinstance(output, Tensor | ModelOutput):
        output.report = report  # type: ignore[union-attr]  # both take attributes
    if isinstance(output, Tensor):
        output.__dict__["__getstate__"] = lambda: None  # saved without it: `torch.load` reads tensors only
