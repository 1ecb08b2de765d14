"""The rows of an output: which prompt position each holds, rows by position, and the loss of the kept ones.

A pruned prompt has fewer rows of logits than positions, right-aligned, while a caller counts positions of `input_ids`.
Shapes: B batch, S sequence, C rows after pruning (S without), N rows asked for.
"""

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import VlmpruneError
from ..flow.compact import Compaction
from ..flow.prompt_state import Rows
from ..flow.returned import shown
from ..ops.gather import gather_positions

IGNORED = -100  # the label that transformers' losses leave out


def wanted(keep: Any, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Sample and position of every row that `logits_to_keep` asks for, [B, N] each, or [N] for a mask [B, S].

    All of these count columns of `input_ids` as the caller wrote them. A column of padding behind a prompt stands for
    the last row before it, so that under right padding too the last column predicts the prompt's next token.

    Args:
        keep: as transformers takes it: the last `keep` columns (0: all), a slice of columns, positions [N] or [B, N], a
            single one, or a bool mask [S] or [B, S].
    Raises:
        VlmpruneError: no such position.
    """
    every = torch.arange(length).expand(batch, -1)
    try:
        if isinstance(keep, int):
            position = every[:, slice(-keep, None)]
        elif isinstance(keep, slice):
            position = every[:, keep]
        else:
            asked = torch.as_tensor(keep).cpu()
            if is_mask(keep):
                every[asked]  # of the prompt's shape, or an error
                sample, position = asked.nonzero(as_tuple=True)
                return sample, position
            if asked.dim() > 1:
                position = every[torch.arange(batch)[:, None], asked.expand(batch, -1)]
            else:
                position = every[:, asked].reshape(batch, -1)
    except (IndexError, TypeError, ValueError, RuntimeError):
        few = isinstance(keep, Tensor) and keep.numel() <= batch and not (is_mask(keep) or keep.is_floating_point())
        given = keep.tolist() if few else shown(keep)
        raise VlmpruneError(
            f"logits_to_keep={given} asks for positions that {batch} prompts of {length} tokens do not have; use 0 to "
            f"{length - 1}, 1-D or a row a sample, a number of last columns, or a bool mask of the prompt's shape."
        ) from None
    return torch.arange(batch)[:, None].expand_as(position), position


def is_mask(keep: Any) -> bool:
    """Whether `logits_to_keep` is a mask [B, S], for which transformers returns rows [N] of all samples together."""
    return isinstance(keep, Tensor) and keep.dim() == 2 and keep.dtype == torch.bool


@dataclass
class Asked:
    """What a call of the whole model asked for, taken out of its arguments, since only we know which rows are left.

    `keep` is `logits_to_keep`, left to the model where `changes_rows` is False; `passed` where the language model was
    told too. `lined_up`: the caller takes a loss of its own from the logits, so they
    have to stand at the positions of `input_ids`. `beside`: the call's other options, which a loss function gets too.
    `rows`: of the prompt that ran.
    """

    labels: Tensor | None = None
    shift_labels: Tensor | None = None
    keep: Any = None
    lined_up: bool = False
    changes_rows: bool = True
    beside: dict[str, Any] = field(default_factory=dict)
    passed: bool = False
    rows: Rows | None = None

    def taken(self, output: Any, rows: Rows) -> Any:
        """The base model's output with the last hidden states that `logits_to_keep` asks for: [B, N, D], or [N, D]."""
        self.rows = rows
        if self.keep is None or not self.changes_rows:
            return output
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        if self.passed and hidden.shape[1] == self.keep:  # no others ran
            return output
        if rows.chosen is None and isinstance(self.keep, int):  # a view, as the model itself would take
            hidden = hidden[:, -self.keep :]
        else:
            sample, position = wanted(self.keep, *rows.valid.shape)
            if not self.lined_up:
                rows.check(sample, position)
            hidden = hidden[sample.to(hidden.device), rows.where[sample, position].to(hidden.device)]
            hidden = hidden if sample.dim() > 1 else hidden[None]  # of one row of samples, for `finish` to take off
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        return output

    @torch.compiler.disable
    def finish(self, model: Any, output: Any) -> Any:
        """The output with the loss of the kept rows, its logits where the caller looks for them, and `rows`."""
        rows = self.rows
        assert rows is not None, "the base model ran"
        logits = output.logits if hasattr(output, "logits") else output[0]
        changes: dict[str, Any] = {}
        if self.labels is not None:
            changes["loss"] = self._loss(model, logits, rows)
        spread = self.lined_up and self.keep is None and rows.chosen is not None
        if spread:
            sample = torch.arange(len(logits), device=logits.device)[:, None]
            changes["logits"] = logits[sample, rows.where.to(logits.device)]
        if self.changes_rows and not isinstance(self.keep, int | slice | None):
            if is_mask(self.keep):
                changes["logits"] = logits[0]
            elif torch.as_tensor(self.keep).dim() == 0:  # of a single position transformers returns logits [B, D]
                changes["logits"] = logits[:, 0]
        output = remade(output, changes)
        return labelled(output, self.row_positions(spread))

    def row_positions(self, spread: bool = False) -> list[Tensor]:
        """Per sample the positions that the output's last rows hold, ascending unless the caller asked otherwise."""
        assert self.rows is not None, "the base model ran"
        valid = self.rows.valid
        batch, length = valid.shape
        if self.keep is not None:
            sample, position = wanted(self.keep, batch, length)
            return [position[sample == i] for i in range(batch)]
        if spread:
            return [torch.arange(length) for _ in range(batch)]
        if self.rows.chosen is None:  # padding behind a prompt keeps its rows
            return [torch.arange(int(first), length) for first in valid.int().argmax(dim=1)]
        return self.rows.positions()

    def _loss(self, model: Any, logits: Tensor, rows: Rows) -> Tensor:
        """The model's own loss: every kept row predicts the kept position after it."""
        labels, beside = self.labels, dict(self.beside)
        assert labels is not None, "asked for"
        if self.keep is not None:
            _, position = wanted(self.keep, *rows.valid.shape)
            if position.shape != labels.shape:
                raise VlmpruneError(
                    f"logits_to_keep asks for rows {list(position.shape)} and labels are {list(labels.shape)}; give "
                    "each row a label, or leave logits_to_keep out."
                )
            if rows.chosen is not None:  # nothing predicts dropped positions
                labels = labels.masked_fill(~predicted(rows.kept).gather(1, position).to(labels.device), IGNORED)
        elif rows.chosen is not None:
            # Fillers are ignored, and so is the first kept position, which no kept row predicts but a filler would.
            seen = predicted(rows.chosen.real).to(labels.device)
            labels = gather_positions(labels, rows.chosen.index.to(labels.device)).masked_fill(~seen, IGNORED)
        if self.shift_labels is not None:
            cut = rows.chosen if self.keep is None else None
            beside["shift_labels"] = self.shift_labels if cut is None else kept_shifted(self.shift_labels, cut)
        vocabulary = model.config.get_text_config().vocab_size
        loss: Tensor = model.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **beside)
        return loss


def asked_for(bound: inspect.BoundArguments, *, prunes: bool, cross: bool, lined_up: bool, cuts: bool = False) -> Asked:
    """What a forward of the whole model was asked for, taken out of its bound arguments where we have to answer it.

    `prunes`: the prompt loses visual tokens, and with them rows unless these are keys of `cross` attention. `lined_up`:
    the caller takes a loss of its own, labels or not. `cuts`: the language model runs only the last rows asked for in
    its later layers, so it is told too.
    """
    given = bound.arguments
    keep = given.get("logits_to_keep")
    if isinstance(keep, int) and keep == 0:  # everything
        keep = None
    came = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
    if keep is not None and not isinstance(keep, int) and came is not None:
        wanted(keep, *came.shape[:2])  # what is wrong with it is said before anything runs
    if cross or not prunes:
        labels, mask = given.get("labels"), given.get("attention_mask")
        if prunes and labels is not None and isinstance(mask, Tensor) and mask.shape == labels.shape:
            real = mask.to(labels.device).bool()  # only padding could predict the first real position
            given["labels"] = labels.masked_fill(real & ~predicted(real), IGNORED)
        return Asked(keep=keep, changes_rows=False)
    passed = cuts and isinstance(keep, int) and not lined_up and given.get("labels") is None
    if not passed:
        given.pop("logits_to_keep", None)
    rest = next((p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    beside = dict(given.get(rest, {}))
    labels = given.pop("labels", None)
    shift_labels = beside.pop("shift_labels", None) if labels is not None else None
    if shift_labels is not None:
        given[rest] = dict(beside)
    lined_up = lined_up or labels is not None or beside.get("num_items_in_batch") is not None
    return Asked(labels, shift_labels, keep, lined_up, beside=beside, passed=passed)


def predicted(real: Tensor) -> Tensor:
    """Of real positions or rows [B, S] those that a real one before them predicts: all but the first."""
    return real & (real.cumsum(1) > 1)


def kept_shifted(labels: Tensor, chosen: Compaction) -> Tensor:
    """Of labels [B, S] that are shifted already (each stands one to the left), those of the kept rows [B, C]."""
    following = torch.cat([chosen.index[:, 1:], chosen.index[:, -1:] + 1], dim=1)  # the next kept position
    before = (following - 1).clamp(min=0).to(labels.device)
    return gather_positions(labels, before).masked_fill(~chosen.real.to(labels.device), IGNORED)


def remade(output: Any, changes: dict[str, Any]) -> Any:
    """A forward's output, an object with fields or a tuple, with another loss or other logits."""
    if not isinstance(output, tuple):
        # Regenerated: a loss that is added to a finished output stands behind the logits, where nobody looks for it.
        return replace(output, **changes) if changes else output
    parts = (changes.get("logits", output[0]), *output[1:])
    return (changes["loss"], *parts) if "loss" in changes else parts


def labelled(output: Any, rows: list[Tensor]) -> Any:
    """The output with `rows` as an attribute; a tuple has no place for it."""
    if not isinstance(output, tuple):
        output.rows = rows
    return output
