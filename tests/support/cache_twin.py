"""The naive twin of cutting a cache: nothing is removed, later rows are only forbidden to see what was cut.

`cut_logits` runs the *unwrapped* model once over prompt and answer, without a cache, with a mask [B, H, T, T] for each
layer and head: rows of the prompt see what they always see, later rows see what their head has kept, and all that came
after the prompt. The `*_choice` functions say what a method keeps, sample by sample in plain loops over the attention
maps of the eager model. It imports nothing of the package. Shapes: B batch, S prompt, T = S + answer, H heads, G key
heads, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support import reference as whole
from tests.support.masked_generate import forced_logits, rows_of

# Per layer, per sample, per key head: the prompt positions that stay. None for a layer that was not cut.
Kept = Sequence[Sequence[Sequence[set[int]]] | None]


@torch.no_grad()
def cut_logits(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    kept: Kept,
    tokens: Tensor,
    pruned: tuple[int, Sequence[Any]] | None = None,
) -> Tensor:
    """[B, steps, vocabulary]: what predicts each of the tokens [B, steps].

    pruned: a layer, and per sample the visual tokens that are left from there on, for prompt and answer alike.
    """
    lm = whole.language_model(model)
    length, answer = inputs["input_ids"].shape[1], tokens[:, :-1]
    valid = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1).bool()
    prompt = whole._language_model_arguments(model, inputs)
    arguments = whole._extended(prompt, answer.shape[1])
    if answer.numel():
        arguments["inputs_embeds"] = torch.cat([prompt["inputs_embeds"], lm.get_input_embeddings()(answer)], dim=1)
    heads = lm.config.num_attention_heads
    with ExitStack() as hooks:
        for index, layer in enumerate(lm.layers):
            visible = whole._visible(model, inputs, valid, index)
            if pruned is not None and index >= pruned[0]:
                gone = whole._dropped(model, inputs, pruned[1], prompt)
                visible = visible & ~torch.nn.functional.pad(gone, (0, valid.shape[1] - length))[:, None]
            masks = visible[:, None].repeat(1, heads, 1, 1)
            for sample, own in enumerate(kept[index] or []):
                for head in range(heads):
                    stays = torch.zeros(length, dtype=torch.bool)
                    stays[sorted(own[head * len(own) // heads])] = True
                    masks[sample, head, length:, :length] &= stays
            masks = masks | torch.eye(masks.shape[-1], dtype=torch.bool)
            additive = torch.zeros(masks.shape).masked_fill(~masks, whole.FORBIDDEN)
            hook = whole._replace({"attention_mask": additive})
            hooks.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        positions = whole._positions(model, inputs, valid)
        out = lm(**arguments, attention_mask=valid.long(), position_ids=positions, use_cache=False)
    return model.lm_head(out.last_hidden_state)[:, length - 1 :]


def cut_forced_logits(
    model: Any, layers: Sequence[Any], inputs: dict[str, Tensor], kept: Kept, tokens: Tensor
) -> Tensor:
    """The same for models of any family, by `generate` with a whole cache: in steps, what was cut is masked.

    The masks that the model makes are taken as they are.
    """
    length, total = inputs["input_ids"].shape[1], [0]

    def count(module: Any, args: Any, kwargs: Any) -> None:
        total[0] += rows_of(args[0], len(tokens))

    def hide(own: Sequence[Sequence[set[int]]], module: Any, args: Any, kwargs: Any) -> Any:
        rows = rows_of(args[0], len(tokens))
        if total[0] == length:
            return None
        mask = kwargs.get("attention_mask")
        if mask is None:
            assert rows == 1
            mask = torch.ones(1, 1, 1, total[0], dtype=torch.bool)
        heads = heads_of(module)
        mask = mask.expand(len(tokens), heads, -1, -1)
        stays = torch.ones(len(tokens), heads, total[0], dtype=torch.bool)
        for sample, sets in enumerate(own):
            for head in range(heads):
                stays[sample, head, :length] = False
                stays[sample, head, sorted(sets[head * len(sets) // heads])] = True
        gone = ~stays[:, :, None, total[0] - mask.shape[-1] :]
        mask = mask & ~gone if mask.dtype == torch.bool else mask.masked_fill(gone, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": mask}

    with ExitStack() as hooks:
        hooks.callback(layers[0].register_forward_pre_hook(count, with_kwargs=True, prepend=True).remove)
        for layer, own in zip(layers, kept, strict=True):
            if own is not None:
                hooks.callback(layer.register_forward_pre_hook(partial(hide, own), with_kwargs=True).remove)
        return forced_logits(model, dict(inputs), tokens)


def heads_of(layer: Any) -> int:
    """Query heads of a decoder layer: its attention's own number where layers differ in it."""
    attention = next(part for part in layer.modules() if hasattr(part, "is_causal"))
    return int(getattr(attention, "num_heads", None) or attention.config.num_attention_heads)


def kept_sets(kept: Sequence[Tensor | None]) -> Kept:
    """What a report says was kept, as sets: per layer [B, C] or [B, G, C], -1 at filler."""
    found: list[Any] = []
    for layer in kept:
        if layer is None:
            found.append(None)
            continue
        by_head = layer if layer.dim() == 3 else layer[:, None]
        found.append([[set(head[head >= 0].tolist()) for head in sample] for sample in by_head])
    return found


class Maps:
    """The attention maps of one unpadded prompt, run alone in the eager model: per layer [H, S, S]."""

    def __init__(self, eager: PreTrainedModel, one: dict[str, Tensor]) -> None:
        with torch.no_grad():
            out = eager(**one, output_attentions=True, use_cache=False)
        self.layers = [layer[0] for layer in out.attentions]
        self.visual = whole.visual_slots(eager, one)[0].tolist()
        self.length = one["input_ids"].shape[1]
        self.key_heads = whole.language_model(eager).config.num_key_value_heads


def snapkv_choice(maps: Maps, layer: int, count: int, window: int, pool: int, visual_only: bool) -> list[set[int]]:
    """SnapKV, per key head: the window, then by smoothed attention of its rows."""
    attention = maps.layers[layer]
    group = len(attention) // maps.key_heads
    rows = range(max(0, maps.length - window), maps.length)
    eligible = maps.visual if visual_only else list(range(maps.length))
    found = []
    for key_head in range(maps.key_heads):
        votes = []
        for at in range(maps.length):
            total = 0.0
            for near in range(at - pool // 2, at + pool // 2 + 1):
                if 0 <= near < rows[0]:
                    for head in range(key_head * group, (key_head + 1) * group):
                        total += sum(float(attention[head, row, near]) for row in rows)
            votes.append(total)
        ranked = sorted(eligible, key=lambda at: (-at if at in rows else 1, -votes[at], at))
        found.append(set(ranked[:count]) | (set(range(maps.length)) - set(eligible)))
    return found


def vote_scores(maps: Maps, layer: int) -> list[float]:
    """VL-Cache: what the text after the image gives each position, over all heads; without such text the last row."""
    attention = maps.layers[layer]
    rows = [row for row in range(maps.length) if maps.visual and row > maps.visual[-1]] or [maps.length - 1]
    return [
        sum(float(attention[head, row, at]) for head in range(len(attention)) for row in rows)
        / (len(attention) * len(rows))
        for at in range(maps.length)
    ]


def best(scores: Sequence[float], eligible: Sequence[int], count: int, last: int) -> set[int]:
    """The highest `count`, ties to the earlier one, the prompt's last position before all."""
    return set(sorted(eligible, key=lambda at: (at != last, -scores[at], at))[:count])
