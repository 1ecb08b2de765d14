"""Models with planted massive activations, and the naive twins of VAR and ACT, written from the papers.

The twin runs the whole sequence at once on an eager model: it makes the softmax map, edits it row by row in loops, and
multiplies by the values. It imports nothing of the package. Shapes: B batch, S prompt, T = S + generated, H heads,
D width, L layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support.reference import Kept, language_model, visual_slots
from tests.support.tiny_families import BOS, Inputs, build

PLANTED = (5, 40)  # the sink dimensions
LAYERS = 6  # so that layers 2 to 4 are eligible
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "smolvlm")
TWIN = "vlmprune_test_twin"


def planted(family: str, attn: str = "sdpa", *, dims: Sequence[int] = PLANTED, size: float = 40.0) -> PreTrainedModel:
    """A tiny model in which BOS and about a third of all tokens spike in `dims` before the first layer.

    Which tokens spike depends on what they are, not on where they stand, so generated ones do too.
    """
    model = build(family, layers=LAYERS, attn=attn)
    lm = language_model(model)

    def spike(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].clone()
        # BOS by its own mark; of the others those on which a wave over one dimension is high.
        chosen = (hidden[..., 0] > 4.0) | (torch.sin(5 * hidden[..., 1]) > 0.6)
        for dim in dims:
            hidden[..., dim] = torch.where(chosen, torch.full_like(hidden[..., dim], size), hidden[..., dim])
        return (hidden, *args[1:])

    with torch.no_grad():
        embedding = lm.get_input_embeddings()
        embedding.weight[BOS, 0] = 9.0 / getattr(embedding, "scalar_embed_scale", 1.0)
    if dims:
        lm.layers[0].register_forward_pre_hook(spike)
    return model


@cache
def shared_planted(family: str, attn: str = "sdpa") -> PreTrainedModel:
    """The same, built once a process: wrap it in a `with` block, change nothing else."""
    return planted(family, attn)


def tau_of(width: int) -> float:
    return 20.0 * math.sqrt(width / 4096)


def naive_phi(x: Tensor, dims: Sequence[int]) -> float:
    root = math.sqrt(sum(v * v for v in x.tolist()) / len(x) + 1e-6)
    return max(abs(float(x[d])) / root for d in dims)


class Twin:
    """An eager model whose eligible layers edit their attention maps; use as `with twin.on(...)`.

    `edit(layer, maps, hidden)` gets the maps [B, H, T, T] of a layer and the residual stream that entered it, and
    changes the maps in place.
    """

    def __init__(self, model: PreTrainedModel, edit: Callable[[int, Tensor, Tensor], None]) -> None:
        self.model, self.edit = model, edit
        self.lm = language_model(model)
        self.entering: dict[int, Tensor] = {}
        self.rows_sum_to_one = True
        self.preparing = False  # the reference runs the whole model once for what it hands to its language model

    def _attention(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query.float() @ key.float().transpose(2, 3) * kwargs["scaling"] + mask
        maps = torch.softmax(scores, dim=-1)
        if not self.preparing:
            self.edit(module.layer_idx, maps, self.entering[module.layer_idx])
        self.rows_sum_to_one &= bool(((maps.sum(-1) - 1).abs() < 1e-5).all())
        return (maps @ value.float()).to(value.dtype).transpose(1, 2).contiguous(), None

    @contextmanager
    def on(self) -> Iterator[Twin]:
        def prepare(on: bool) -> Callable[..., None]:
            return lambda *_: setattr(self, "preparing", on)

        handles = [self.model.register_forward_pre_hook(prepare(True))]
        handles.append(self.model.register_forward_hook(prepare(False)))
        ALL_ATTENTION_FUNCTIONS[TWIN] = self._attention
        configs = [layer.self_attn.config for layer in self.lm.layers]
        for i, layer in enumerate(self.lm.layers):
            config = copy.copy(layer.self_attn.config)
            config._attn_implementation_internal = TWIN
            layer.self_attn.config = config

            def record(module: nn.Module, args: tuple[Tensor, ...], i: int = i) -> None:
                self.entering[i] = args[0]

            handles.append(layer.register_forward_pre_hook(record))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            for layer, config in zip(self.lm.layers, configs, strict=True):
                layer.self_attn.config = config
            del ALL_ATTENTION_FUNCTIONS[TWIN]


class Seen(dict[Any, int]):
    """How often each thing happened, by layer."""

    def add(self, what: Any) -> None:
        self[what] = self.get(what, 0) + 1


def edited(
    model: PreTrainedModel, inputs: Inputs, kept: Kept | None, layer: int, i: int
) -> Iterator[tuple[int, list[int], list[int]]]:
    """Of a layer that VAR and ACT edit, per sample: its number, its visual tokens and all its columns, as positions.

    Padding is left out, and from `layer` on what was dropped.
    """
    if not 2 <= i <= LAYERS - 2:
        return
    for b, slots in enumerate(visual_slots(model, inputs)):
        left = slots if kept is None or i < layer else slots[torch.as_tensor(kept[b], dtype=torch.long)]
        dropped = set(slots.tolist()) - set(left.tolist())
        real = inputs["attention_mask"][b].nonzero()[:, 0].tolist()
        yield b, left.tolist(), [j for j in real if j not in dropped]


def var_twin(
    model: PreTrainedModel,
    inputs: Inputs,
    *,
    p: float = 0.4,
    rho: float = 0.5,
    gate: float = 0.2,
    dims: Sequence[int] = PLANTED,
    kept: Kept | None = None,
    layer: int = 0,
    seen: Seen | None = None,
) -> Twin:
    """VAR from the paper, one row and head at a time."""
    seen = Seen() if seen is None else seen

    def edit(i: int, maps: Tensor, hidden: Tensor) -> None:
        tau = tau_of(hidden.shape[-1])
        ends = [int(s[-1]) if len(s) else None for s in visual_slots(model, inputs)]
        for b, visual, columns in edited(model, inputs, kept, layer, i):
            sinks = [j for j in columns if naive_phi(hidden[b, j].float(), dims) >= tau]
            image_sinks = [j for j in sinks if j in set(visual)]
            seen.add((i, "visual sinks" if image_sinks else "no visual sinks"))
            if not image_sinks:
                continue
            free = [j for j in visual if j not in set(sinks)]
            for q in range(ends[b] + 1, maps.shape[2]):
                for h in range(maps.shape[1]):
                    row = maps[b, h, q]
                    to_image = float(row[visual].sum())
                    to_free = float(row[free].sum()) if free else 0.0
                    if to_image < gate or to_free == 0.0 or to_free / to_image < rho:
                        seen.add((i, "closed"))
                        continue
                    seen.add((i, "open"))
                    budget = p * float(row[sinks].sum())
                    share = row[free] / row[free].sum()
                    row[sinks] *= 1 - p
                    row[free] += budget * share

    return Twin(model, edit)


def act_twin(
    model: PreTrainedModel,
    inputs: Inputs,
    *,
    beta: float = 0.4,
    threshold: float = 0.1,
    heads: Sequence[tuple[int, int]] | None = None,
    kept: Kept | None = None,
    layer: int = 0,
    seen: Seen | None = None,
) -> Twin:
    """ACT from the paper: sinks from the prompt's own maps, the edit in every row."""
    prompt = inputs["input_ids"].shape[1]
    seen = Seen() if seen is None else seen

    def edit(i: int, maps: Tensor, hidden: Tensor) -> None:
        for b, _, rows in edited(model, inputs, kept, layer, i):
            for h in range(maps.shape[1]):
                if heads is not None and (i, h) not in heads:
                    continue
                received = maps[b, h].tolist()
                sinks = []
                for j in rows[1:]:
                    # A key is seen where the mask lets it: in these causal prompts, and inside an image block.
                    seeing = [q for q in rows if received[q][j] > 0.0]
                    if len(seeing) >= 8 and sum(received[q][j] for q in seeing) / len(seeing) > threshold:
                        sinks.append(j)
                seen.add((i, "sinks" if sinks else "none"))
                others = [j for j in range(maps.shape[3]) if j not in set(sinks)]
                for q in [*rows, *range(prompt, maps.shape[2])]:
                    row = maps[b, h, q]
                    rest = float(row[others].sum())
                    if rest == 0.0:
                        continue
                    freed = (1 - beta) * float(row[sinks].sum())
                    row[sinks] *= beta
                    row[others] += freed * row[others] / rest

    return Twin(model, edit)
