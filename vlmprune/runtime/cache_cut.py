"""The cache of a prompt is cut: each layer is read while the prompt runs, and what a method keeps of it is gathered.

Shapes: B batch, G key heads, S prompt, P entries that a layer holds of it, C entries that stay.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..accounting.cache_report import CacheReport, entries_of, mean_entries, stored_bytes
from ..attention.editor import KeyColumns, columns_of, compacted
from ..attention.probe import AttentionCall
from ..errors import VlmpruneError
from ..flow.compact import Compaction
from ..flow.entries import entry_index, kept_entries
from ..flow.prompt_state import PromptState
from ..flow.stage import Stage
from ..hf.buffered_layer import buffer_layers, grows, slides
from ..hf.cache_state import PrunedPrompt, holds_keys, remember, remember_layers
from ..hf.grouped_layer import GroupedLayer
from ..methods.kv.base import CacheCut, LayerEntries
from ..methods.var import ranges
from ..ops.gather import gather_entries
from .decide import pruned_prompt
from .setup import Setup


@dataclass(frozen=True)
class _Held:
    """What the layers of a stage hold of a prompt, on the CPU.

    `columns`: as an editor sees them. `positions` [B, P]: of the unpruned prompt, -1 at filler. `behind`: bool [B, P],
    rows after the prompt, which always stay. `groups`: per sample, how many eligible entries each image has, or all
    tokens together. `eligible`, `always`: bool [B, P], what is ranked, and what stays anyway.
    """

    columns: KeyColumns
    positions: Tensor
    behind: Tensor
    groups: list[list[int]]
    eligible: Tensor
    always: Tensor


class CacheCutter:
    """A `CacheCut` at work on one prompt.

    Args:
        layers: those that are cut. repeats: rows side by side that are one prompt's (beams), which choose alike.
    """

    def __init__(self, setup: Setup, method: CacheCut, state: PromptState, layers: list[int], repeats: int) -> None:
        self.setup, self.method, self.state, self.layers, self.repeats = setup, method, state, layers, repeats
        self._scores: dict[int, Tensor] = {}
        self._weights: dict[int, Tensor | None] = {}
        self._query_heads: dict[int, int] = {}
        self._held: dict[int | None, _Held] = {}
        self._chosen: dict[int, PrunedPrompt] = {}
        self._done: set[int] = set()  # cut, or left alone

    def observe(self, call: AttentionCall, output: Tensor, *, layer: int) -> None:
        """The layer's attention of the prompt has run; its scores are all that is kept of it."""
        cache = self.state.cache
        if cache is None:
            return
        self._query_heads[layer] = call.query.shape[1]
        self._score(layer, cache.layers[layer].keys, call)

    def check(self, cache: Any) -> None:
        """Refuse a cache that cannot be cut exactly, before the prompt runs."""
        for i in self.layers:
            if cache is None or not holds_keys(cache, i):
                continue
            kind = type(cache.layers[i])
            if hasattr(cache.layers[i], "indexer_keys"):
                raise VlmpruneError(
                    f"{type(self.method).__name__} cannot cut the cache of layer {i}, whose indexer selects keys by "
                    "their place; use a pruner such as 'divprune'."
                )
            if not grows(cache.layers[i]) and not slides(cache.layers[i]):
                raise VlmpruneError(
                    f"{type(self.method).__name__} cannot cut a {kind.__name__} of the cache; call generate without "
                    "cache_implementation, so that it makes a DynamicCache."
                )
        if getattr(cache, "offloading", False):
            raise VlmpruneError(
                f"{type(self.method).__name__} cannot cut a cache that is offloaded to the CPU; call generate without "
                "cache_implementation."
            )

    @torch.no_grad()
    def layer_done(self, layer: int) -> None:
        """A layer has run. If its budget is known it is cut at once: no more than one whole layer is held beside the
        others. One whose keys later layers use waits for these."""
        cache = self.state.cache
        if cache is None or self.method.spreads or layer not in self._cuttable or layer in self.setup.lent:
            return
        self._read(layer)
        self._cut(layer, self._uniform(layer))
        if layer in self._chosen:  # whoever asks the cache for its length meanwhile is told the prompt's
            remember(cache, replace(self._chosen[layer]))

    @torch.no_grad()
    def finish(self) -> None:
        """The prompt has run: cut what is left, and put on the cache what later steps have to know."""
        layers = [i for i in self.layers if i in self._cuttable and i not in self._done]
        for i in layers:
            self._read(i)
        for i, counts in zip(layers, self._counts(layers), strict=True):
            self._cut(i, counts)
        if self._chosen:
            remember_layers(self.state.cache, self._states())

    @property
    def _cuttable(self) -> list[int]:
        cache = self.state.cache
        return [i for i in self.layers if holds_keys(cache, i) and grows(cache.layers[i])]

    @property
    def cut(self) -> set[int]:
        """The layers that hold less than they did."""
        return set(self._chosen)

    def _read(self, layer: int) -> None:
        """See to it that a layer that has run has its scores."""
        if layer in self._scores:
            return
        if self.method.reads_attention:
            raise VlmpruneError(
                f"{type(self.method).__name__} reads the attention of layer {layer}, but the module there calls no "
                "kernel of transformers' ALL_ATTENTION_FUNCTIONS; use a method that reads none, such as 'kv-random'."
            )
        self._score(layer, self.state.cache.layers[layer].keys, None)

    # -- what a layer holds, and what stays --------------------------------------------------------------------

    def _stage(self, layer: int) -> Stage | None:
        stage = self.state.stage_at(layer)
        return None if stage is None or stage.on_host is None else stage

    def held(self, layer: int) -> _Held:
        """Made once for all layers of a stage."""
        stage = self._stage(layer)
        key = None if stage is None else stage.layer
        if key not in self._held:
            self._held[key] = self._made(stage)
        return self._held[key]

    def _made(self, stage: Stage | None) -> _Held:
        state, columns = self.state, columns_of(self.state)
        length = state.valid.shape[1]
        positions = torch.arange(length).expand(len(state.valid), -1)
        if stage is not None and stage.on_host is not None:
            positions, columns = stage.on_host.columns, compacted(columns, stage.on_host)
        behind = (positions >= state.prompt_length) & state.valid.gather(1, positions.clamp(min=0))
        kept = [torch.arange(layout.count) for layout in state.layouts] if stage is None else stage.kept
        if self.method.tokens == "all":
            groups, eligible = [[int(real.sum())] for real in columns.real], columns.real
        else:
            groups = [
                [int(torch.isin(span.positions, own).sum()) for span in layout.images]
                for layout, own in zip(state.layouts, kept, strict=True)
            ]
            eligible = columns.visual
        return _Held(columns, positions, behind, groups, eligible, (columns.real & ~eligible) | behind)

    def _score(self, layer: int, keys: Tensor, call: AttentionCall | None) -> None:
        held, state = self.held(layer), self.state
        columns = held.columns.to(keys.device)
        entries = LayerEntries(
            layer=layer,
            visual=columns.visual,
            real=columns.real,
            suffix=columns.suffix_rows & columns.real,
            ids=[ids[valid] for ids, valid in zip(state.input_ids, state.prompt_valid, strict=True)],
            heads=keys.shape[1],
            call=call,
        )
        with torch.no_grad():
            scores = self.method.score(entries)
            self._weights[layer] = self.method.weigh(entries) if self.method.by_head else None
        shape = (len(keys), keys.shape[1], keys.shape[2])
        if not isinstance(scores, Tensor) or scores.shape not in (shape, (shape[0], 1, shape[2])):
            raise VlmpruneError(
                f"{type(self.method).__name__}.score() returned {_shape_of(scores)} for layer {layer}; return a tensor "
                f"of shape {shape}, or {(shape[0], 1, shape[2])} where all heads keep the same."
            )
        self._scores[layer] = scores.masked_fill(entries.last(1)[:, None], float("inf"))

    def _uniform(self, layer: int) -> list[int]:
        """Per sample, a layer's count where it depends on no other layer's scores."""
        at, places = self.layers.index(layer), len(self.layers)
        return [self.method.count(groups, at, places) for groups in self.held(layer).groups]

    def _counts(self, layers: list[int]) -> list[list[int]]:
        """Per layer, per sample."""
        method, counts = self.method, [self._uniform(i) for i in layers]
        if not method.spreads or not layers:
            return counts
        means = dict(zip(layers, host_scores([self._scores[i].mean(dim=1) for i in layers]), strict=True))
        for b in range(len(self.state.valid)):
            eligible = {i: self.held(i).eligible[b] for i in layers}
            scores = [means[i][b][eligible[i]].nan_to_num(posinf=0.0) for i in layers]
            spread = method.spread([own[b] for own in counts], scores)
            for own, count in zip(counts, spread, strict=True):
                own[b] = count
        return counts

    def _cut(self, layer: int, counts: list[int]) -> None:
        """Gather what stays of a layer's entries; one of which everything stays is left alone."""
        held, state, scores = self.held(layer), self.state, self._scores.pop(layer)
        self._done.add(layer)
        sizes, others = held.eligible.sum(dim=1).tolist(), held.always.sum(dim=1).tolist()
        if all(count >= size for count, size in zip(counts, sizes, strict=True)):
            return
        cached = state.cache.layers[layer]
        device = cached.keys.device
        scores, heads = scores.to(device), scores.shape[1]
        own = self._by_head(layer, scores, counts, sizes) if self.method.by_head and heads > 1 else None
        keep = kept_entries(scores, held.eligible.to(device), held.always.to(device), counts if own is None else own)
        if self.repeats > 1:
            keep = keep[:: self.repeats].repeat_interleave(self.repeats, dim=0)
        if own is None:
            chosen = entry_index(keep, [count + other for count, other in zip(counts, others, strict=True)])
        else:
            lengths = [[one + other for one in heads] for heads, other in zip(own, others, strict=True)]
            if self.repeats > 1:
                lengths = [lengths[i - i % self.repeats] for i in range(len(lengths))]
            chosen = entry_index(keep, lengths)
        if chosen.index.shape[1] == 1:
            chosen = Compaction(chosen.index[:, 0], chosen.real[:, 0], chosen.ragged)
        if own is not None and any(len(set(heads)) > 1 for heads in own):
            state.cache.layers[layer] = GroupedLayer.of(cached.keys, cached.values, chosen.index, torch.tensor(lengths))
        else:
            cached.keys = gather_entries(cached.keys, chosen.index)
            cached.values = gather_entries(cached.values, chosen.index)
        made = self._chosen[layer] = self._state(layer, held.positions.to(device), chosen)
        for observer in self.setup.observers:
            observer.cut(layer, chosen, made.group)

    def _by_head(self, layer: int, scores: Tensor, counts: list[int], sizes: list[int]) -> list[list[int]]:
        """Per sample and key head, how many eligible entries stay."""
        at, places, weights = self.layers.index(layer), len(self.layers), self._weights.pop(layer)
        found, eligible = [], self.held(layer).eligible
        (host,) = host_scores([scores])
        for b, (count, size) in enumerate(zip(counts, sizes, strict=True)):
            own = None if weights is None else weights[b].cpu()
            spread = self.method.by_heads(host[b][:, eligible[b]], own, count, at, places)
            found.append([min(size, max(0, n)) for n in spread])
        return found

    def _state(self, layer: int, positions: Tensor, chosen: Compaction) -> PrunedPrompt:
        state, stage = self.state, self._stage(layer)
        if chosen.index.dim() == 3:
            positions = positions[:, None].expand(-1, chosen.index.shape[1], -1)
        columns = positions.gather(-1, chosen.index).masked_fill(~chosen.real, -1)
        columns = columns[..., : columns.shape[-1] - (state.valid.shape[1] - state.prompt_length)]
        shift = None if stage is None else pruned_prompt(state, stage).shift
        heads = chosen.index.shape[1] if chosen.index.dim() == 3 else 1
        group = self._query_heads.get(layer, heads) // heads
        return PrunedPrompt(layer, state.prompt_length, columns, chosen.ragged, shift, group=group)

    def _states(self) -> list[PrunedPrompt]:
        """Of every layer from the first that holds less than the prompt."""
        state = self.state
        made: dict[int, PrunedPrompt] = {}
        states: list[PrunedPrompt] = []
        everything = torch.arange(state.prompt_length, device=state.device).expand(len(state.valid), -1)
        for i in range(len(self.setup.attentions)):
            source, stage = self.setup.sources[i], self._stage(i)
            if source in self._chosen and stage is self._stage(source):
                found = self._chosen[source]
            elif stage is not None:
                found = made.setdefault(stage.layer, pruned_prompt(state, stage))
            elif states:
                found = made.setdefault(-1, PrunedPrompt(0, state.prompt_length, everything, False))
            else:
                continue
            states.append(replace(found, layer=i))
        return states

    def kept(self, layer: int) -> Tensor | None:
        """Prompt positions of a layer's entries [rows, G or none, C], -1 at filler; None of one that was not cut."""
        found = self._chosen.get(self.setup.sources[layer])
        return None if found is None else found.columns[:: self.repeats]


def host_scores(tensors: list[Tensor]) -> list[Tensor]:
    """Scores on the CPU; ids are counted in whole numbers, scores are not."""
    return [tensor.cpu() for tensor in tensors]


def _shape_of(scores: Any) -> str:
    return f"a tensor of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"{scores!r:.60}"


def cutter_for(setup: Setup, state: PromptState, repeats: int) -> CacheCutter | None:
    """The cache method at work on a prompt; None where there is none, or nothing that it may cut."""
    method = setup.cache_method
    if not isinstance(method, CacheCut) or (method.tokens == "visual" and not state.has_image):
        return None
    return CacheCutter(setup, method, state, setup.cut_layers, repeats)


def settled(setup: Setup, state: PromptState, cutter: CacheCutter | None, own: bool) -> CacheReport | None:
    """The prompt has run, and its cache becomes what the steps go on with; None where a cache method has none to act
    on, or there is no such method. `own`: the caller did not pass the cache."""
    method, cache, layers = setup.cache_method, state.cache, range(len(setup.attentions))
    if method is None or cache is None:
        return None
    cut: set[int] = set()
    if cutter is not None:
        cutter.finish()
        cut = cutter.cut
    saves = list(method.saves) if cut or not isinstance(method, CacheCut) else []
    grouped = [layer for layer in cache.layers if isinstance(layer, GroupedLayer)]
    if (own if method.buffer is None else method.buffer) and (buffer_layers(cache) or grouped):
        for layer in grouped:
            layer.buffered()
        saves.append("the copy of the cache in each step")
    return CacheReport(
        saves=saves,
        lengths=[entries_of(cache, i) for i in layers],
        per_head=[mean_entries(cache, i) for i in layers],
        kept=[None if cutter is None else cutter.kept(i) for i in layers],
        bytes_prefill=stored_bytes(cache),
        uncut=[i for i in setup.seeing if i not in cut and setup.sources[i] == i],
    )


def cut_notes(setup: Setup, cutter: CacheCutter | None, report: CacheReport | None) -> list[str]:
    """What the report says of a cache that was not cut, or only in some layers."""
    method = setup.cache_method
    if method is None:
        return []
    if report is None:
        return [f"{method.title}: the model ran without a cache, so there was nothing to act on"]
    if cutter is not None and cutter.cut and report.uncut:
        return [f"{method.title}: layers {ranges(report.uncut)} keep all they hold (a window, or nothing to drop)"]
    return []
