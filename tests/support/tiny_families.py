"""The twelve supported families, built tiny from their configs (no download), and prompts for them.

`build("qwen3_vl")` gives a model of a few thousand parameters whose logits move visibly when visual tokens are
dropped; `make_inputs(model)` gives a left-padded batch ready for `model(**inputs)` and `model.generate(**inputs)`;
`row(inputs, i)` is sample i of it alone, without padding. Shapes: B batch, S sequence, V visual tokens, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

VOCAB = 128
PAD, BOS, IMAGE, VIDEO = 0, 1, 120, 121
# What a processor writes around the placeholders of an image: opening and closing; for Idefics3 also the place of a
# tile in its row (one id for each column), the name of the whole image, and a line break.
OPEN, CLOSE, COLUMN, WHOLE, LINE = 110, 111, (112, 113), 114, 115
FIRST_TEXT, LAST_TEXT = 10, 99

Config = dict[str, Any]
Tensors = dict[str, Tensor]


# --- configs -----------------------------------------------------------------------------------------------------


def _text(layers: int, **extra: Any) -> Config:
    """A text config with grouped-query attention: 4 query heads share 2 key heads."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": None,
        **extra,
    }


def _tower(patch: int = 4, **extra: Any) -> Config:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 12,
        "patch_size": patch,
        **extra,
    }


def _qwen_tower(**extra: Any) -> Config:
    return {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, **extra}


# M-RoPE splits half of the head width (16 / 2) into time, height and width.
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
_PINPOINTS = [[12, 24], [24, 12]]


def _llava(layers: int) -> Config:
    return {"vision_config": _tower(model_type="clip_vision_model"), "text_config": _text(layers, model_type="llama")}


def _llava_next(layers: int) -> Config:
    text = _text(layers, model_type="mistral", sliding_window=None)
    tower = _tower(model_type="clip_vision_model")
    return {"vision_config": tower, "text_config": text, "image_grid_pinpoints": _PINPOINTS}


def _llava_onevision(layers: int) -> Config:
    text = _text(layers, model_type="qwen2")
    tower = _tower(model_type="siglip_vision_model", vision_use_head=False)
    ids = {"video_token_index": VIDEO}
    return {"vision_config": tower, "text_config": text, "image_grid_pinpoints": _PINPOINTS, **ids}


# transformers up to 5.17 counts a prompt's images by what opens them when it repeats rows for beams.
_QWEN_IDS = {"video_token_id": VIDEO, "vision_start_token_id": OPEN}


def _qwen2_vl(layers: int) -> Config:
    tower = _qwen_tower(embed_dim=32, hidden_size=64, mlp_ratio=2)
    return {"vision_config": tower, "text_config": _text(layers, **_MROPE), **_QWEN_IDS}


def _qwen2_5_vl(layers: int) -> Config:
    # window_size 16 pixels = 2 x 2 merged tokens, so that the tower's windowed layers really have windows.
    tower = _qwen_tower(
        hidden_size=32, intermediate_size=48, out_hidden_size=64, window_size=16, fullatt_block_indexes=[1]
    )
    return {"vision_config": tower, "text_config": _text(layers, **_MROPE), **_QWEN_IDS}


def _qwen3_vl(layers: int) -> Config:
    # DeepStack: the outputs of tower layers 0 and 1 are added behind decoder layers 0 and 1.
    tower = _qwen_tower(
        hidden_size=32,
        intermediate_size=48,
        out_hidden_size=64,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    ) | {"depth": 3}
    text = _text(layers, head_dim=16, **_MROPE)
    return {"vision_config": tower, "text_config": text, **_QWEN_IDS}


def _idefics3(layers: int) -> Config:
    return {"vision_config": _tower(patch=2), "text_config": _text(layers, model_type="llama"), "scale_factor": 2}


def _smolvlm(layers: int) -> Config:
    # transformers 5.20 cuts the tokens of a crop (9 here) into blocks of as many as a patch is wide.
    return _idefics3(layers) | {"vision_config": _tower(patch=3, image_size=18)}


def _internvl(layers: int) -> Config:
    return {"vision_config": _tower(patch=2), "text_config": _text(layers, model_type="qwen2"), "image_seq_length": 9}


def _gemma3(layers: int) -> Config:
    # A window of 8 is smaller than one image (9 tokens) and than every prompt. Odd layers see everything.
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    text = _text(layers, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, layer_types=kinds)
    tower = _tower(patch=2, model_type="siglip_vision_model", vision_use_head=False)
    return {
        "vision_config": tower,
        "text_config": text,
        "mm_tokens_per_image": 9,
        "boi_token_index": OPEN,
        "eoi_token_index": CLOSE,
    }


def _paligemma(layers: int) -> Config:
    tower = _tower(model_type="siglip_vision_model", vision_use_head=False)
    text = _text(layers, model_type="gemma", head_dim=16)
    return {"vision_config": tower, "text_config": text, "projection_dim": 64, "hidden_size": 64}


def _mllama(layers: int) -> Config:
    tower = _tower(patch=6) | {
        "num_global_layers": 1,
        "attention_heads": 2,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,  # the last hidden state and two intermediate ones, 32 wide each
    }
    tower.pop("num_attention_heads")
    cross = list(range(1, layers, 2))
    return {"vision_config": tower, "text_config": _text(layers, cross_attention_layers=cross)}


# --- one image of each family --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """One image of a prompt: the ids a processor would write for it and the tensors the tower wants."""

    ids: list[int]
    tensors: Tensors


def _pixels(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _one_grid(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    return Image([IMAGE] * 9, {"pixel_values": _pixels(generator, 1, 3, 12, 12)})


def _framed(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    return Image([OPEN, *[IMAGE] * 9, CLOSE], {"pixel_values": _pixels(generator, 1, 3, 12, 12)})


def _any_res(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    """(H, W) sizes that the two pinpoints pad, so that un-padding removes rows or columns: V = 30, 21, 16."""
    size = torch.tensor([[12, 24], [24, 4], [4, 24]][number % 3])
    # LlavaOnevision does not cut an image of a prompt with several images into patches.
    whole = several and model.config.model_type == "llava_onevision"
    tensors = {"pixel_values": _pixels(generator, 1 if whole else 3, 3, 12, 12), "image_sizes": size[None]}
    # "2 images in the sample" makes the model treat this one as it will in the prompt; only its length is wanted.
    counts = {"batch_num_images": torch.tensor([2])} if whole else {}
    with torch.no_grad():
        features = model.get_image_features(tensors["pixel_values"][None], size[None], **counts)
    return Image([IMAGE] * len(features.pooler_output[0]), tensors)


def _qwen_grid(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    grid = torch.tensor([[1, 6, 8], [1, 4, 10], [1, 8, 8]][number % 3])
    patches = _pixels(generator, int(grid.prod()), 3 * 2 * 4 * 4)
    tokens = int(grid.prod()) // 4
    return Image([OPEN, *[IMAGE] * tokens, CLOSE], {"pixel_values": patches, "image_grid_thw": grid[None]})


def _crops(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    """Idefics3 and SmolVLM: every second image comes as two tiles, a line break, and the whole, as prompted."""
    tiles = COLUMN if number % 2 else ()
    ids = [token for column in tiles for token in (OPEN, column, *[IMAGE] * 9)]
    ids += [LINE, LINE] if tiles else []
    ids += [OPEN, WHOLE, *[IMAGE] * 9, OPEN]
    side = model.config.vision_config.image_size
    return Image(ids, {"pixel_values": _pixels(generator, len(tiles) + 1, 3, side, side)})


def _tiles(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    """InternVL: the placeholders of all tiles of an image follow each other without a gap."""
    tiles = 3 if number % 2 else 1
    return Image([OPEN, *[IMAGE] * 9 * tiles, CLOSE], {"pixel_values": _pixels(generator, tiles, 3, 12, 12)})


def _mllama_tiles(model: PreTrainedModel, number: int, several: bool, generator: torch.Generator) -> Image:
    """One position in the text; of its four tiles (2 x 2 patches and a class token each) one or two are real."""
    tiles = 2 if number % 2 else 1
    pixels = torch.zeros(1, 4, 3, 12, 12)
    pixels[:, :tiles] = _pixels(generator, 1, tiles, 3, 12, 12)
    mask = (torch.arange(4) < tiles).long()
    # Aspect ratio 1 is 1 x 1 and 2 is 1 x 2 in the config's list of supported ratios.
    ratio = torch.tensor([tiles])
    return Image([IMAGE], {"pixel_values": pixels, "aspect_ratio_ids": ratio, "aspect_ratio_mask": mask})


# --- batching ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    ids: Tensor
    images: list[Image]


def _pad(tensor: Tensor, length: int) -> Tensor:
    """Zeros behind the first dimension."""
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])


def _join(samples: list[Sample], name: str) -> Tensor:
    return torch.cat([image.tensors[name] for sample in samples for image in sample.images])


def _flat_images(samples: list[Sample], ids: Tensor) -> Tensors:
    return {"pixel_values": _join(samples, "pixel_values")}


def _any_res_images(samples: list[Sample], ids: Tensor) -> Tensors:
    patches = [image.tensors["pixel_values"] for sample in samples for image in sample.images]
    most = max(len(p) for p in patches)
    return {"pixel_values": torch.stack([_pad(p, most) for p in patches]), "image_sizes": _join(samples, "image_sizes")}


def _onevision_images(samples: list[Sample], ids: Tensor) -> Tensors:
    counts = torch.tensor([len(sample.images) for sample in samples])
    return _any_res_images(samples, ids) | {"batch_num_images": counts}


def _qwen_images(samples: list[Sample], ids: Tensor) -> Tensors:
    names = ("pixel_values", "image_grid_thw")
    return {name: _join(samples, name) for name in names} | {"mm_token_type_ids": (ids == IMAGE).long()}


def _gemma3_images(samples: list[Sample], ids: Tensor) -> Tensors:
    return _flat_images(samples, ids) | {"token_type_ids": (ids == IMAGE).long()}


def _paligemma_images(samples: list[Sample], ids: Tensor) -> Tensors:
    # 0 marks the prefix, which sees itself in both directions; generated tokens are the suffix (1).
    return _flat_images(samples, ids) | {"token_type_ids": torch.zeros_like(ids)}


def _idefics3_images(samples: list[Sample], ids: Tensor) -> Tensors:
    crops = [torch.cat([image.tensors["pixel_values"] for image in sample.images]) for sample in samples]
    most = max(len(c) for c in crops)
    return {"pixel_values": torch.stack([_pad(c, most) for c in crops])}


def _mllama_images(samples: list[Sample], ids: Tensor) -> Tensors:
    most = max(len(sample.images) for sample in samples)
    tensors = {
        name: torch.stack([_pad(_join([sample], name).reshape(len(sample.images), *shape), most) for sample in samples])
        for name, shape in {
            "pixel_values": (4, 3, 12, 12),
            "aspect_ratio_ids": (),
            "aspect_ratio_mask": (4,),
        }.items()
    }
    # A text row sees the real tiles of the images that stand at or before it.
    seen = torch.stack([torch.arange(1, most + 1)] * len(ids))[:, None] <= (ids == IMAGE).cumsum(-1)[..., None]
    tensors["cross_attention_mask"] = (seen[..., None] * tensors["aspect_ratio_mask"][:, None]).long()
    return tensors


@dataclass(frozen=True)
class Family:
    config: Callable[[int], Config]
    image: Callable[[PreTrainedModel, int, bool, torch.Generator], Image]
    batch: Callable[[list[Sample], Tensor], Tensors]
    image_first: bool = False


_FAMILIES = {
    "llava": Family(_llava, _one_grid, _flat_images),
    "llava_next": Family(_llava_next, _any_res, _any_res_images),
    "llava_onevision": Family(_llava_onevision, _any_res, _onevision_images),
    "qwen2_vl": Family(_qwen2_vl, _qwen_grid, _qwen_images),
    "qwen2_5_vl": Family(_qwen2_5_vl, _qwen_grid, _qwen_images),
    "qwen3_vl": Family(_qwen3_vl, _qwen_grid, _qwen_images),
    "idefics3": Family(_idefics3, _crops, _idefics3_images),
    "smolvlm": Family(_smolvlm, _crops, _idefics3_images),
    "internvl": Family(_internvl, _tiles, _flat_images),
    "gemma3": Family(_gemma3, _framed, _gemma3_images),
    "paligemma": Family(_paligemma, _one_grid, _paligemma_images, image_first=True),
    "mllama": Family(_mllama, _mllama_tiles, _mllama_images),
}
FAMILIES = tuple(_FAMILIES)


# --- the three functions tests call --------------------------------------------------------------------------------


def build(
    model_type: str, *, layers: int = 4, attn: str = "sdpa", seed: int = 0, text: Config | None = None
) -> PreTrainedModel:
    """A tiny random model of the family, its text config changed by `text`. The same seed gives the same weights
    whatever `attn` is."""
    image_id = VOCAB if model_type == "mllama" else IMAGE  # Mllama's is the one id behind the vocabulary
    key = "image_token_index" if hasattr(AutoConfig.for_model(model_type), "image_token_index") else "image_token_id"
    options = {**_FAMILIES[model_type].config(layers), key: image_id, "tie_word_embeddings": False}
    options["text_config"] |= text or {}
    config = AutoConfig.for_model(model_type, **options)
    with torch.random.fork_rng():  # some one-dimensional weights keep their random init
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn)
    _scale_weights(model, torch.Generator().manual_seed(seed))
    # Nothing may end a generation early: tests compare a fixed number of steps.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model.eval()


def _scale_weights(model: nn.Module, generator: torch.Generator) -> None:
    """The default init (std 0.02) makes tests blind: attention is flat and dropping tokens moves no logit.

    Every linear map keeps the variance of what goes through it, gates are open, norms and biases are not trivial.
    """
    # Gemma multiplies embeddings by sqrt(width) when they are looked up.
    embeddings = {
        id(m.weight): getattr(m, "scalar_embed_scale", 1.0) for m in model.modules() if isinstance(m, nn.Embedding)
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(noise / embeddings[id(parameter)])
            elif name.endswith("gate") and parameter.numel() == 1:
                parameter.fill_(1.0)
            elif parameter.ndim >= 2:
                parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(noise * 0.1)


class Inputs(dict[str, Tensor]):
    """Keyword arguments of a model call that remember the samples they were made of."""

    samples: list[Sample]
    model_type: str


def make_inputs(
    model: PreTrainedModel,
    *,
    text_lengths: tuple[int, ...] = (5, 9, 7),
    images: tuple[int, ...] = (1, 1, 1),
    seed: int = 0,
) -> Inputs:
    """A left-padded batch: sample i has `text_lengths[i]` text tokens and `images[i]` images.

    The sizes of the images go round, so V differs between samples wherever the family has sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    family = _FAMILIES[model.config.model_type]
    samples, number = [], 0
    for length, count in zip(text_lengths, images, strict=True):
        text = torch.randint(FIRST_TEXT, LAST_TEXT + 1, (length,), generator=generator).tolist()
        pictures = [family.image(model, number + i, count > 1, generator) for i in range(count)]
        number += count
        if family.image_first:
            ids = [token for picture in pictures for token in picture.ids] + [BOS, *text[1:]]
        else:
            # BOS and one word, then an image and one word at a time, then the question.
            ids, words = [BOS, text[1]], iter(text[2:])
            for picture in pictures:
                ids += [*picture.ids, next(words)]
            ids += list(words)
        samples.append(Sample(_image_ids(model, ids), pictures))
    return _collate(model.config.model_type, samples)


def _image_ids(model: PreTrainedModel, ids: list[int]) -> Tensor:
    out = torch.tensor(ids)
    return out.masked_fill(out == IMAGE, model.config.image_token_id)


def _collate(model_type: str, samples: list[Sample], right: int | None = None) -> Inputs:
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.stack([_padded(sample.ids, longest, right) for sample in samples])
    mask = torch.stack([_padded(torch.ones_like(sample.ids), longest, right) for sample in samples])
    inputs = Inputs(input_ids=ids, attention_mask=mask)
    if any(sample.images for sample in samples):
        placeholders = ids.masked_fill(ids == VOCAB, IMAGE)
        inputs.update(_FAMILIES[model_type].batch(samples, placeholders))
    inputs.samples = samples
    inputs.model_type = model_type
    return inputs


def _padded(tensor: Tensor, length: int, right: int | None) -> Tensor:
    """Padding on the left, `right` of it on the right; with 0 all of it."""
    missing = length - len(tensor)
    behind = 0 if right is None else min(missing, right or missing)
    return torch.cat([tensor.new_full((missing - behind,), PAD), tensor, tensor.new_full((behind,), PAD)])


def padded(inputs: Inputs, side: str) -> Inputs:
    """The batch padded on the "left", the "right", or on "both" sides (two places at most on the right)."""
    return _collate(inputs.model_type, inputs.samples, {"left": None, "right": 0, "both": 2}[side])


def of_ids(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The batch with other ids in every sample; the placeholders of its images must stay."""
    return _collate(inputs.model_type, [Sample(change(sample.ids), sample.images) for sample in inputs.samples])


def row(inputs: Inputs, i: int) -> Inputs:
    """Sample i of the batch alone, without padding."""
    return _collate(inputs.model_type, [inputs.samples[i]])


def repeated(inputs: Inputs, times: int) -> Inputs:
    """Every sample `times` times, side by side, as beams stand."""
    return _collate(inputs.model_type, [sample for sample in inputs.samples for _ in range(times)])
