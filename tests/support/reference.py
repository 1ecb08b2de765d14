"""The naive twin of pruning: nothing is removed, the dropped visual tokens are only masked.

`masked_logits` runs the *unwrapped* model over the whole sequence, without a cache, and writes every attention mask
out by hand from what the architectures say. It imports nothing of the package, so it can be wrong only in its own way.
Shapes: B batch, S sequence of the prompt, T = S + generated, V visual tokens of a sample, K kept, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Kept = Sequence[Tensor | Sequence[int]]

# Where a forbidden column is; the value transformers uses too, so rows softmax to the same numbers.
FORBIDDEN = torch.finfo(torch.float32).min


def language_model(model: PreTrainedModel) -> nn.Module:
    """Idefics3 and SmolVLM call it text_model, all others language_model."""
    base = model.model
    return base.text_model if hasattr(base, "text_model") else base.language_model


def visual_slots(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Per sample [V]: where its visual tokens are; for Mllama columns of the cross attention, else positions.

    Mllama pads every image to the same number of tiles. Columns of tiles that no text row sees are no visual tokens.
    """
    if model.config.model_type == "mllama":
        seen = inputs["cross_attention_mask"].bool().any(dim=1)  # [B, images, tiles]
        return [row.flatten().nonzero().squeeze(-1) for row in seen.repeat_interleave(_patches(model), dim=-1)]
    return [row.nonzero().squeeze(-1) for row in inputs["input_ids"] == model.config.image_token_id]


def _patches(model: PreTrainedModel) -> int:
    """Columns of one Mllama tile: its patches and the class token."""
    vision = model.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2 + 1


@torch.no_grad()
def masked_logits(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    kept: Kept,
    layer: int,
    steps: int,
    tokens: Tensor | None = None,
) -> Tensor:
    """[B, steps, vocabulary]: what predicts each of the next `steps` tokens.

    kept: per sample ascending indices into its visual tokens. layer: the others are masked in layers >= layer.
    tokens: [B, >= steps - 1] to continue the prompt with; without it every step takes its own most likely token.
    """
    start = inputs["input_ids"].shape[1] - 1
    if tokens is not None:
        # Rows see nothing behind them, so one pass over all tokens holds every step's row.
        return all_logits(model, inputs, kept, layer, tokens[:, : steps - 1])[:, start:]
    tokens = inputs["input_ids"][:, :0]
    for _ in range(steps):
        logits = all_logits(model, inputs, kept, layer, tokens)[:, start:]
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return logits


def all_logits(
    model: PreTrainedModel, inputs: dict[str, Tensor], kept: Kept, layer: int, tokens: Tensor | None = None
) -> Tensor:
    """[B, T, vocabulary]: one pass over the prompt and the tokens behind it."""
    return staged_logits(model, inputs, [(layer, kept, None)], tokens)


@torch.no_grad()
def staged_logits(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    stages: Sequence[tuple[int, Kept, Sequence[Tensor] | None]],
    tokens: Tensor | None = None,
) -> Tensor:
    """[B, T, vocabulary]: as `all_logits`, dropping more from layer to layer and merging.

    stages: by ascending layer, what is kept from this layer on (indices into all of a sample's visual tokens), and per
    sample [K, D] the hidden states that replace the kept ones' before this layer, or None.
    """
    ids = inputs["input_ids"]
    tokens = ids[:, :0] if tokens is None else tokens
    valid = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], dim=1).bool()
    prompt = _language_model_arguments(model, inputs)
    dropped = [_dropped(model, inputs, kept, prompt) for _, kept, _ in stages]

    lm = language_model(model)
    arguments = _extended(prompt, len(tokens[0]))
    # Generated tokens are plain words, whatever their id (a model can generate the id of an image token).
    if tokens.numel():
        arguments["inputs_embeds"] = torch.cat([prompt["inputs_embeds"], lm.get_input_embeddings()(tokens)], dim=1)
    with ExitStack() as hooks:
        for index, decoder_layer in enumerate(lm.layers):
            last = max((at for at, (layer, _, _) in enumerate(stages) if layer <= index), default=None)
            masks = _masks(model, inputs, valid, index, None if last is None else dropped[last], arguments)
            hooks.callback(decoder_layer.register_forward_pre_hook(_replace(masks), with_kwargs=True).remove)
            for layer, kept, merged in stages:
                if layer == index and merged is not None:
                    hook = _overwrite(visual_slots(model, inputs), kept, merged)
                    hooks.callback(decoder_layer.register_forward_pre_hook(hook).remove)
        hidden = lm(
            **arguments, attention_mask=valid.long(), position_ids=_positions(model, inputs, valid), use_cache=False
        )
    return model.lm_head(hidden.last_hidden_state)


def _overwrite(slots: Sequence[Tensor], kept: Kept, merged: Sequence[Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0].clone()
        for row, where, keep, states in zip(hidden, slots, kept, merged, strict=True):
            row[where[torch.as_tensor(keep, dtype=torch.long)]] = states
        return (hidden, *args[1:])

    return hook


def _replace(masks: dict[str, Tensor]) -> Any:
    return lambda module, args, kwargs: (args, kwargs | masks)


def _language_model_arguments(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the model hands to its language model for the prompt: embeddings with the images in them, and extras.

    Extras are DeepStack's features (Qwen3-VL) and the cross-attention states with their masks (Mllama).
    """
    recorded: dict[str, Any] = {}
    lm = language_model(model)
    handle = lm.register_forward_pre_hook(lambda module, args, kwargs: recorded.update(kwargs), with_kwargs=True)
    try:
        # Explicit positions: Qwen would otherwise store the prompt's rope_deltas on the model.
        model(**inputs, position_ids=_positions(model, inputs, inputs["attention_mask"].bool()), use_cache=False)
    finally:
        handle.remove()
    if recorded.get("inputs_embeds") is None:
        recorded["inputs_embeds"] = lm.get_input_embeddings()(inputs["input_ids"])
    names = (
        "inputs_embeds",
        "visual_pos_masks",
        "deepstack_visual_embeds",
        "cross_attention_states",
        "cross_attention_mask",
        "full_text_row_masked_out_mask",
    )
    return {name: recorded[name] for name in names if recorded.get(name) is not None}


def _extended(prompt: dict[str, Any], more: int) -> dict[str, Any]:
    """The extras for `more` tokens behind the prompt: not visual, and seeing the images its last token sees."""
    out = dict(prompt)
    if "visual_pos_masks" in out:
        out["visual_pos_masks"] = nn.functional.pad(out["visual_pos_masks"], (0, more), value=False)
    for name in ("cross_attention_mask", "full_text_row_masked_out_mask"):
        if name in out:
            out[name] = torch.cat([out[name], out[name][:, :, -1:].expand(-1, -1, more, -1)], dim=2)
    return out


def _positions(model: PreTrainedModel, inputs: dict[str, Tensor], valid: Tensor) -> Tensor:
    """The original position ids, dropped tokens counted: [B, T], for Qwen [4, B, T] (text, time, height, width)."""
    text = (valid.long().cumsum(-1) - 1).clamp(min=0)
    if model.config.model_type == "paligemma":
        return text + 1  # counts from 1
    if not model.config.model_type.startswith("qwen"):
        return text
    more = valid.shape[1] - inputs["input_ids"].shape[1]
    grids, _ = model.model.get_rope_index(
        nn.functional.pad(inputs["input_ids"], (0, more)),
        mm_token_type_ids=nn.functional.pad(inputs["mm_token_type_ids"], (0, more)),
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=valid.long(),
    )
    return torch.cat([text[None], grids])


def _dropped(model: PreTrainedModel, inputs: dict[str, Tensor], kept: Kept, prompt: dict[str, Any]) -> Tensor:
    """[B, S], for Mllama [B, columns]: True where a visual token is not kept."""
    out = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    if model.config.model_type == "mllama":
        out = torch.zeros(len(out), prompt["cross_attention_mask"].shape[-1], dtype=torch.bool)
    for row, slots, keep in zip(out, visual_slots(model, inputs), kept, strict=True):
        row[slots] = True
        row[slots[torch.as_tensor(keep, dtype=torch.long)]] = False
    return out


def _masks(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    valid: Tensor,
    index: int,
    dropped: Tensor | None,
    arguments: dict[str, Any],
) -> dict[str, Tensor]:
    """The keyword arguments of decoder layer `index` that say what sees what."""
    if model.config.model_type == "mllama":
        masks = {"attention_mask": _additive(_visible(model, inputs, valid, index))}
        if dropped is not None:
            cross = arguments["cross_attention_mask"]
            masks["cross_attention_mask"] = cross.masked_fill(dropped[:, None, None], FORBIDDEN)
        return masks
    visible = _visible(model, inputs, valid, index)
    if dropped is not None:
        visible &= ~nn.functional.pad(dropped, (0, valid.shape[1] - dropped.shape[1]))[:, None]
    return {"attention_mask": _additive(visible)}


def _visible(model: PreTrainedModel, inputs: dict[str, Tensor], valid: Tensor, index: int) -> Tensor:
    """[B, T, T]: whether row q sees column k in layer `index` of the unpruned model."""
    length = valid.shape[1]
    q, k = torch.arange(length)[:, None], torch.arange(length)[None]
    visible = (k <= q).expand(len(valid), -1, -1)
    block = _bidirectional_blocks(model, inputs, length)
    if block is not None:
        visible = visible | ((block[:, :, None] == block[:, None]) & (block >= 0)[:, :, None])
    text = model.config.text_config
    kind = _layer_kind(text, index)
    if kind == "sliding_attention":
        # Distances count dropped tokens and padding alike: it is a distance of slots in the original sequence.
        visible = visible & (k > q - text.sliding_window)
    elif kind == "chunked_attention":  # Llama 4: chunks are counted from a sample's first token
        first = valid.int().argmax(dim=1)[:, None]
        chunk = (torch.arange(length)[None] - first) // text.attention_chunk_size
        visible = visible & (chunk[:, :, None] == chunk[:, None])
    return visible & valid[:, None]


def _layer_kind(text: Any, index: int) -> str:
    """Full, sliding or chunked attention, as the modeling files of transformers choose it."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return kinds[index]
    # Mistral, Mixtral, Phi-3, Starcoder 2: one window for all layers, unless it is None.
    return "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"


def _bidirectional_blocks(model: PreTrainedModel, inputs: dict[str, Tensor], length: int) -> Tensor | None:
    """[B, T]: tokens of one number see each other in both directions; -1 for tokens that look back only."""
    types = inputs.get("token_type_ids")
    if types is None:
        return None
    if model.config.model_type == "gemma3":
        image = types == 1  # every run of image tokens is one block
        first = image & ~nn.functional.pad(image, (1, 0))[:, :-1]
        blocks = torch.where(image, first.cumsum(-1), -1)
    else:
        blocks = torch.where(types == 0, 0, -1)  # PaliGemma: the whole prefix is one block
    return nn.functional.pad(blocks, (0, length - types.shape[1]), value=-1)


def _additive(visible: Tensor) -> Tensor:
    """[B, 1, T, T]. Padding and dropped rows see themselves: nobody reads them, but an empty row would be NaN."""
    visible = visible | torch.eye(visible.shape[-1], dtype=torch.bool)
    return torch.zeros(visible.shape).masked_fill(~visible, FORBIDDEN)[:, None]
