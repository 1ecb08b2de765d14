"""A pruning layer of a prompt: what the pruner may look at, what it decides, and what that makes of the sequence.

Shapes: B batch, S sequence before pruning, V visual tokens of a sample, K kept, D width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..attention.probe import AttentionCall
from ..attention.sink_observer import VisualSinkObserver
from ..errors import VlmpruneError
from ..flow.compact import compaction, keep_mask
from ..flow.locate import last_valid
from ..flow.prompt_state import PromptState
from ..flow.returned import checked_query_positions, checked_selection, readable
from ..flow.select import Selection, with_last
from ..flow.stage import Stage
from ..hf.arguments import host_copies
from ..hf.cache_state import PrunedPrompt, remember
from ..methods.base import Pruner, PruningContext
from ..ops.gather import gather_rows


class Decider:
    """A pruner at work on one prompt, at each of its layers; it writes what it reads and decides into `state`.

    `sinks` finds visual sinks for pruners that leave them out of their ranking; `last_norm` is the language model's.
    """

    def __init__(
        self,
        pruner: Pruner,
        layers: Sequence[int],
        state: PromptState,
        sinks: VisualSinkObserver | None = None,
        last_norm: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.pruner, self.layers, self.state, self.sinks = pruner, tuple(layers), state, sinks
        self._last_norm = last_norm
        self._name = type(pruner).__name__

    def observe(self, call: AttentionCall, output: Tensor | None = None, *, layer: int) -> None:
        """Read the layer before a stage, or its own ahead of its run: attention [B, S or cross states], mean over
        heads, and keys.

        Query rows are the last prompt token's, or those of the text tokens that the method named. `layer`: whose
        call it is.
        """
        state, heads = self.state, call.query.shape[1]
        causal = not state.cross_attention
        columns = state.columns_of(layer)
        if self.pruner.reads_keys:
            # A static cache has room for more than the prompt; keys of cross attention are no positions of it.
            state.keys = call.key.detach()[:, :, : state.length if causal else call.key.shape[2]]
            if columns is not None:
                state.keys = gather_rows(call.key.detach().transpose(0, 1), columns).transpose(0, 1)
        rows, weight = self._query_rows()
        received = call.received(rows, weight, causal=causal) / heads
        state.attention = received if columns is None else received.gather(1, columns.to(received.device))

    def _query_rows(self) -> tuple[Tensor, Tensor | None]:
        """The rows [B, R] whose attention counts, and how much each does."""
        state = self.state
        where, queries = state.inverse(), state.query_positions
        if queries is None:
            rows = last_valid(state.prompt_valid)[:, None]
            return rows if state.cross_attention else where.gather(1, rows), None
        longest = max(len(own) for own in queries)
        # Rows are repeated to equal length, so that none reads padding, which is NaN; the repeats do not count.
        rows = torch.stack([where[row, own][torch.arange(longest) % len(own)] for row, own in enumerate(queries)])
        return rows, torch.stack([torch.arange(longest) < len(own) for own in queries]).float()

    def ask_query_positions(self, hidden: Tensor) -> None:
        """Before layer 0, once per prompt: which text tokens' attention counts."""
        if self.state.query_positions is None:
            named = self.pruner.query_positions(self._context(0, hidden))
            self.state.query_positions = checked_query_positions(named, self.state.valid, self._name)

    def decide(self, layer: int, hidden: Tensor) -> Stage:
        """Run the pruner on what is left, and turn its choice into a gather index over the sequence."""
        state = self.state
        pruner = self.pruner
        if (pruner.reads_attention and state.attention is None) or (pruner.reads_keys and state.keys is None):
            raise VlmpruneError(
                f"{self._name} reads the attention before layer {layer}, but the module there calls no kernel of "
                "transformers' ALL_ATTENTION_FUNCTIONS; use a method that reads none, such as 'divprune', or let the "
                "module look its kernel up by self.config._attn_implementation."
            )
        context = self._context(layer, hidden)
        selection = self._select(context)
        kept = selection.kept
        if state.stages:
            kept = [old[new] for old, new in zip(state.stages[-1].kept, kept, strict=True)]
        stage = Stage(layer, kept)
        # Where nothing is dropped or merged, every layer runs untouched, bit by bit.
        if any(len(some) < layout.count for some, layout in zip(kept, state.layouts, strict=True)):
            stage.merged = selection.merged
            stage.places = [layout.slots[new] for layout, new in zip(context.layouts, selection.kept, strict=True)]
            # Padding goes too, and rows are re-padded to the longest.
            eligible = torch.ones(hidden.shape[:2], dtype=torch.bool) if state.cross_attention else state.valid
            stage.on_host = compaction(keep_mask(eligible, [layout.slots for layout in state.layouts], kept))
            stage.chosen = stage.on_host.to(hidden.device)
            stage.inner = stage.chosen.index
            if state.chosen is not None:
                stage.inner = state.inverse().gather(1, stage.on_host.index).to(hidden.device)
        state.stages.append(stage)
        if state.cache is not None and stage.chosen is not None:
            remember(state.cache, pruned_prompt(state, stage))
        return stage

    def _context(self, layer: int, hidden: Tensor) -> PruningContext:
        """What the pruner sees: the prompt as earlier stages have left it."""
        state = self.state
        layouts, ids, valid = state.left()
        return PruningContext(
            layouts=layouts,
            hidden=hidden,
            input_ids=ids,
            valid=valid,
            layer=layer,
            attention=state.attention,
            importance=state.importance,
            sinks=self.sinks.among(hidden, layouts, layer) if self.sinks else None,
            keys=state.keys,
            vision=state.vision,
            last_norm=self._last_norm,
            stage=len(state.stages),
            stages=len(self.layers),
            unpruned=state.layouts,
        )

    def _select(self, context: PruningContext) -> Selection:
        selection = self.pruner.select(context)  # not under no_grad: merged states carry the gradient
        kept = selection.kept if isinstance(selection, Selection) else None
        if isinstance(kept, list) and kept and all(isinstance(some, Tensor) and readable(some) for some in kept):
            selection = Selection(host_copies(kept), selection.merged)
        selection = checked_selection(selection, context.layouts, context.hidden.shape[-1], self._name)
        return with_last(selection, context.layouts, context.hidden)


def pruned_prompt(state: PromptState, stage: Stage) -> PrunedPrompt:
    """What later steps have to know of a stage, to be kept on the cache."""
    assert stage.chosen is not None, "something was dropped"
    columns, ragged = stage.chosen.columns, stage.chosen.ragged
    if state.cross_attention:
        return PrunedPrompt(stage.layer, state.valid.shape[1], columns, ragged, cross=True)
    dropped = torch.tensor([layout.count - len(kept) for layout, kept in zip(state.layouts, stage.kept, strict=True)])
    shift = dropped.to(columns.device) if state.reindexed else None
    # What comes after the prompt are candidates: `generate` takes those it rejects from the cache again.
    rows = columns.shape[1] - (state.valid.shape[1] - state.prompt_length)
    return PrunedPrompt(stage.layer, state.prompt_length, columns[:, :rows], ragged, shift)
