"""Families without a declared adapter, built tiny with their own vision towers, and pixels for them.

Nothing is handed over: tower and projector run. Of each type: the tower's tiny config, which keeps the published kind
(class token or none, merging, pixel shuffle, resampler), an image as its processor prepares it, and how many tokens it
has by the processor's rule, which no code of the package states. perception_lm, gemma3n and fast_vlm are left out:
their towers need timm.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AutoConfig, PreTrainedModel
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from ..tiny_families import CLOSE, FIRST_TEXT, LAST_TEXT, LINE, OPEN, PAD, Inputs
from . import MAKERS
from .common import IMAGE, VOCAB, build_from, default_config

WIDTH = 64  # of the language model
_TILE = (112, 113)  # what stands before a tile: its number


@dataclass(frozen=True)
class TowerImage:
    """One image of a prompt.

    `ids`: what its processor writes. `tensors`: what the tower gets, first axis 1 or the tower's own units. `counts`
    and `grids`: visual tokens and (t, h, w) of each unit that the tower encodes for itself (an image or a tile of one),
    None where its tokens show no place.
    """

    ids: list[int]
    tensors: dict[str, Tensor]
    counts: list[int]
    grids: list[tuple[int, int, int] | None]


@dataclass(frozen=True)
class Tower:
    """`config` writes the vision part into the type's tiny config; `image(number, generator)` is an image, of another
    size for every number where the type has sizes. `by_sample`: pixels are [samples, images, ...], padded with zeros.
    `fillers`: of tensors that are padded to the largest image with another number than 0.
    """

    config: Callable[[Any], None]
    image: Callable[[int, torch.Generator], TowerImage]
    by_sample: bool = False
    fillers: dict[str, int] = field(default_factory=dict)


# --- images ----------------------------------------------------------------------------------------------------------


def _square(side: int, tokens: int, *, name: str = "pixel_values", framed: bool = False, places: bool = True) -> Any:
    """Every image is `side` pixels wide and high, and has `tokens` tokens."""

    def image(number: int, generator: torch.Generator) -> TowerImage:
        ids = [OPEN, *[IMAGE] * tokens, CLOSE] if framed else [IMAGE] * tokens
        width = int(tokens**0.5)
        grid = (1, width, width) if places else None
        return TowerImage(ids, {name: torch.randn(1, 3, side, side, generator=generator)}, [tokens], [grid])

    return image


def _tiles(side: int, tokens: int, *, separated: bool) -> Any:
    """Every second image comes as two tiles; `separated`: each has its number before it."""

    def image(number: int, generator: torch.Generator) -> TowerImage:
        tiles, width = 1 + number % 2, int(tokens**0.5)
        ids = [OPEN]
        for tile in range(tiles):
            ids += [*([_TILE[tile]] if separated else []), *[IMAGE] * tokens]
        pixels = torch.randn(tiles, 3, side, side, generator=generator)
        return TowerImage([*ids, CLOSE], {"pixel_values": pixels}, [tokens] * tiles, [(1, width, width)] * tiles)

    return image


_PATCHES = ((4, 6), (6, 4), (4, 4))  # rows and columns of patches before merging


def _patched(*shape: int, merge: int = 2, **more: int) -> Any:
    """Patches [h * w, *shape] of an image of any size, `merge` x `merge` of them a token; `more`: a number an image."""

    def image(number: int, generator: torch.Generator) -> TowerImage:
        h, w = _PATCHES[number % 3]
        tensors = {
            "pixel_values": torch.randn(h * w, *shape, generator=generator),
            "image_grid_thw": torch.tensor([[1, h, w]]),
            **{name: torch.tensor([value]) for name, value in more.items()},
        }
        rows, cols = h // merge, w // merge
        return TowerImage([OPEN, *[IMAGE] * (rows * cols), CLOSE], tensors, [rows * cols], [(1, rows, cols)])

    return image


def _pixtral(*, breaks: bool) -> Any:
    """Any size, patches of 4, 2 x 2 of them a token; `breaks`: an id ends each row of tokens."""

    def image(number: int, generator: torch.Generator) -> TowerImage:
        h, w = (4 * size for size in _PATCHES[number % 3])
        pixels = torch.randn(1, 3, h, w, generator=generator)
        rows, cols = h // 8, w // 8
        ids = [IMAGE] * (rows * cols)
        if breaks:
            ids = [one for _ in range(rows) for one in (*[IMAGE] * cols, LINE)]
            ids[-1] = CLOSE
        tensors = {"pixel_values": pixels, "image_sizes": torch.tensor([[h, w]])}
        return TowerImage(ids, tensors, [rows * cols], [(1, rows, cols)])

    return image


def _naflex(number: int, generator: torch.Generator) -> TowerImage:
    """Siglip 2: patches of 4 padded to the longest image; 2 x 2 of them a token."""
    h, w = _PATCHES[number % 3]
    tensors = {
        "pixel_values": torch.randn(1, h * w, 48, generator=generator),
        "spatial_shapes": torch.tensor([[h, w]]),
        "pixel_attention_mask": torch.ones(1, h * w, dtype=torch.long),
    }
    return TowerImage([OPEN, *[IMAGE] * (h * w // 4), CLOSE], tensors, [h * w // 4], [(1, h // 2, w // 2)])


def _any_res(number: int, generator: torch.Generator) -> TowerImage:
    """Two tiles of 3 x 3 patches beside the whole, which has 9 tokens. A 12 x 24 image fills them: 3 rows of 6 and a
    newline each; a 24 x 4 one, padded to 24 x 12, keeps the middle one of three columns: 6 rows of 1 and a newline."""
    size, tokens = (((12, 24), 9 + 3 * 7), ((24, 4), 9 + 6 * 2))[number % 2]
    pixels = torch.randn(1, 3, 3, 12, 12, generator=generator)
    return TowerImage([IMAGE] * tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([size])}, [tokens], [None])


def _idefics2(number: int, generator: torch.Generator) -> TowerImage:
    """5 resampled tokens whatever its size, between tokens that stand around every image."""
    h, w = (4 * size for size in _PATCHES[number % 3])
    pixels, mask = torch.randn(1, 3, h, w, generator=generator), torch.ones(1, h, w, dtype=torch.long)
    ids = [OPEN, *[IMAGE] * 5, OPEN]
    return TowerImage(ids, {"pixel_values": pixels, "pixel_attention_mask": mask}, [5], [None])


def _aria(number: int, generator: torch.Generator) -> TowerImage:
    """4 queries of 16 patches; of every second image the right half is padding."""
    one = _square(16, 4, framed=True, places=False)(number, generator)
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    mask[:, :, 8:] = number % 2 == 0
    return TowerImage(one.ids, one.tensors | {"pixel_mask": mask}, one.counts, one.grids)


def _hybrid(number: int, generator: torch.Generator) -> TowerImage:
    """DeepSeek-VL 7B: the same image for a second tower, of a higher resolution."""
    one = _square(12, 9)(number, generator)
    high = torch.randn(1, 3, 16, 16, generator=generator)
    return TowerImage(one.ids, one.tensors | {"high_res_pixel_values": high}, one.counts, one.grids)


def _gemma4(number: int, generator: torch.Generator) -> TowerImage:
    """Patches of 4 with their places (x, y), padded to 36; 3 x 3 of them are pooled to a token."""
    h, w = ((3, 6), (6, 3), (6, 6))[number % 3]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([x, y], dim=-1).reshape(1, -1, 2)
    tensors = {
        "pixel_values": pad(torch.rand(1, h * w, 48, generator=generator), (0, 0, 0, 36 - h * w)),
        "image_position_ids": pad(places, (0, 0, 0, 36 - h * w), value=-1),
    }
    return TowerImage([OPEN, *[IMAGE] * (h * w // 9), CLOSE], tensors, [h * w // 9], [(1, h // 3, w // 3)])


def _molmo2(number: int, generator: torch.Generator) -> TowerImage:
    """The whole image of 4 x 4 patches and, of every second one, two tiles; 2 x 2 patches are pooled to a token."""
    tiles = 2 * (number % 2)
    index = torch.arange(16 * (1 + tiles)).view(-1, 4, 4)
    if tiles:  # side by side
        index = [index[0], torch.cat([index[1], index[2]], dim=1)]
    pooled = torch.cat([one.unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4) for one in index])
    low, high = 4, 8 if tiles else 0
    ids = [OPEN, *[IMAGE] * low, CLOSE, *([OPEN, *[IMAGE] * high, CLOSE] if tiles else [])]
    tensors = {
        "pixel_values": torch.randn(1 + tiles, 16, 48, generator=generator),
        "image_token_pooling": pooled,
        "image_grids": torch.tensor([[2, 2, 2, 4] if tiles else [2, 2, 0, 0]]),
        "image_num_crops": torch.tensor([1 + tiles]),
    }
    return TowerImage(ids, tensors, [low + high], [None if tiles else (1, 2, 2)])


# --- configs ---------------------------------------------------------------------------------------------------------

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def _parts(vision: dict[str, Any], **top: Any) -> Callable[[Any], None]:
    """The vision config of the type's own class, and settings beside it."""

    def write(config: Any) -> None:
        for name, value in top.items():
            setattr(config, name, value)
        kind = vision.get("model_type")
        config.vision_config = AutoConfig.for_model(**vision) if kind else type(config.vision_config)(**vision)

    return write


def _grid_tower(**more: Any) -> dict[str, Any]:
    """The towers that Qwen2-VL's became: blocks, patches merged at the end, frames in pairs."""
    return {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH, **more,
    }  # fmt: skip


def _llama4(config: Any) -> None:
    """Four patches of 32 side by side go into the projector; prompts are shorter than what scales queries (8192)."""
    vision = {**_SMALL, "intermediate_size": 4 * 32, "image_size": 24, "patch_size": 4, "pixel_shuffle_ratio": 0.5}
    _parts({**vision, **dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), WIDTH)})(
        config
    )
    config.text_config.floor_scale = 8192


_SIGLIP = {**_SMALL, "model_type": "siglip_vision_model", "patch_size": 4}
_CLIP = {**_SMALL, "model_type": "clip_vision_model", "patch_size": 4}
_SAM = {
    "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 48,
}  # fmt: skip
_WINDOWED = {"window_size": 16, "fullatt_block_indexes": [1]}  # 2 x 2 merged tokens
_STARTS = {"vision_start_token_id": OPEN, "vision_end_token_id": CLOSE}
_GLM_STARTS = {"image_start_token_id": OPEN, "image_end_token_id": CLOSE}
_QWEN3 = {"num_position_embeddings": 64}
TOWERS: dict[str, Tower] = {
    "aria": Tower(
        _parts({**_SMALL, "image_size": 16, "patch_size": 4}, projector_patch_to_query_dict={16: 4},
               max_value_projector_patch_to_query_dict=4), _aria,
    ),
    "aya_vision": Tower(_parts({**_SIGLIP, "image_size": 24}, downsample_factor=2), _tiles(24, 9, separated=True)),
    "cohere2_vision": Tower(
        _parts({**_SIGLIP, "image_size": 24}, downsample_factor=2, alignment_intermediate_size=96),
        _tiles(24, 9, separated=True),
    ),
    "cosmos3_edge": Tower(
        _parts({**_SMALL, "patch_size": 4, "num_patches": 36, "spatial_merge_size": 2}, projector_hidden_size=96,
               **_STARTS), _patched(48),
    ),
    "deepseek_vl": Tower(_parts({**_SIGLIP, "image_size": 12}), _square(12, 9)),
    "deepseek_vl_hybrid": Tower(
        _parts({**_SIGLIP, "image_size": 12}, high_res_vision_config=AutoConfig.for_model("sam_vision_model", **_SAM)),
        _hybrid,
    ),
    "exaone4_5": Tower(_parts(_grid_tower(num_key_value_heads=1, **_WINDOWED)), _patched(96)),
    "gemma4": Tower(
        _parts({**_SMALL, "model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4,
                "position_embedding_size": 16, "pooling_kernel_size": 3}), _gemma4, fillers={"image_position_ids": -1},
    ),
    "glm46v": Tower(_parts(_grid_tower(image_size=24), **_GLM_STARTS), _patched(96)),
    "glm4v": Tower(_parts(_grid_tower(image_size=24), **_GLM_STARTS), _patched(96)),
    "glm4v_moe": Tower(_parts(_grid_tower(image_size=24), **_GLM_STARTS), _patched(96)),
    "glm_ocr": Tower(_parts(_grid_tower(image_size=24), **_GLM_STARTS), _patched(96)),
    "got_ocr2": Tower(_parts({**_SAM, "image_size": 24, "patch_size": 2}), _square(24, 9, framed=True)),
    "hyperclovax_vision_v2": Tower(_parts(_grid_tower(**_WINDOWED)), _patched(96)),
    "idefics2": Tower(
        _parts({**_SMALL, "image_size": 24, "patch_size": 4}, perceiver_config=AutoConfig.for_model(
            "idefics2_perceiver", hidden_size=WIDTH, resampler_n_latents=5, resampler_depth=1, resampler_n_heads=4,
            resampler_head_dim=16, num_key_value_heads=2)), _idefics2, by_sample=True,
    ),
    "janus": Tower(
        _parts({**_SMALL, "image_size": 12, "patch_size": 4, "projection_dim": WIDTH, "mlp_ratio": 2.0,
                "num_image_tokens": 9}, vq_config=AutoConfig.for_model(  # of images it draws
            "janus_vqgan", num_embeddings=40, latent_channels=32, base_channels=32, channel_multiplier=[1, 1],
            num_res_blocks=1, num_patches=3, projection_dim=32, image_token_embed_dim=32)), _square(12, 9, framed=True),
    ),
    "kimi_k25": Tower(
        _parts({**_SMALL, "patch_size": 4, "pos_emb_height": 6, "pos_emb_width": 6, "pos_emb_time": 4},
               projection_hidden_size=32, **_STARTS), _patched(3, 4, 4),
    ),
    "lfm2_vl": Tower(
        _parts({**_SMALL, "patch_size": 4, "num_patches": 36}, downsample_factor=2, projector_hidden_size=96), _naflex,
    ),
    "lighton_ocr": Tower(_parts({**_SMALL, "image_size": 24, "patch_size": 4, "head_dim": 16}), _pixtral(breaks=False)),
    "llama4": Tower(_llama4, _tiles(24, 9, separated=True)),
    "llava_next_video": Tower(
        _parts({**_CLIP, "image_size": 12}, image_grid_pinpoints=[[12, 24], [24, 12]]), _any_res,
    ),
    "minimax_m3_vl": Tower(
        _parts({**_SMALL, "image_size": 24, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2},
               projector_hidden_size=48, merged_hidden_size=4 * WIDTH), _patched(96),
    ),
    "mistral3": Tower(_parts({**_SMALL, "image_size": 24, "patch_size": 4, "head_dim": 16}), _pixtral(breaks=True)),
    "molmo2": Tower(
        _parts({**_SMALL, "num_key_value_heads": 2, "head_dim": 16, "image_size": [16, 16], "patch_size": 4,
                "num_position_embeddings": 16}, adapter_config=AutoConfig.for_model(
            "molmo2_adapter", vision_feature_layer=[1, 0], hidden_size=32, num_attention_heads=2, num_key_value_heads=2,
            head_dim=16, intermediate_size=48, text_hidden_size=WIDTH)), _molmo2,
    ),
    "ovis2": Tower(
        _parts({**_SMALL, "image_size": 24, "patch_size": 4, "hidden_stride": 2, "vocab_size": 40},
               hidden_size=WIDTH,
               vocab_size=VOCAB, visual_indicator_token_ids=[OPEN, *_TILE, LINE, CLOSE]), _tiles(24, 9, separated=True),
    ),
    "paddleocr_vl": Tower(_parts({**_SMALL, "image_size": 24, "patch_size": 4}, **_STARTS), _patched(3, 4, 4)),
    "qianfan_ocr": Tower(_parts({**_SMALL, "image_size": 24, "patch_size": 4}), _tiles(24, 9, separated=False)),
    "qwen3_5": Tower(_parts(_grid_tower(**_QWEN3), **_STARTS), _patched(96)),
    "qwen3_vl_moe": Tower(
        _parts(_grid_tower(**_QWEN3) | {"depth": 3, "deepstack_visual_indexes": [0, 1]}, **_STARTS), _patched(96),
    ),
    "video_llama_3": Tower(_parts({**_SMALL, "patch_size": 4}), _patched(48, image_merge_sizes=2)),
    "video_llava": Tower(_parts({**_CLIP, "image_size": 12}), _square(12, 9, name="pixel_values_images")),
    "vipllava": Tower(
        _parts({**_CLIP, "image_size": 12, "num_hidden_layers": 4}, vision_feature_layer=[-2, -3, 1]), _square(12, 9),
    ),
}  # fmt: skip


# --- models and prompts ----------------------------------------------------------------------------------------------


def build_tower_model(model_type: str, *, attn: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A tiny random model of the type with its own tower; the same seed gives the same weights."""
    config = MAKERS[model_type]() if model_type in MAKERS else default_config(model_type)
    TOWERS[model_type].config(config)
    if model_type == "llama4":  # transformers 5.24 reads a field that the language model's output does not have
        MoeCausalLMOutputWithPast.image_outputs = None  # type: ignore[attr-defined]
    # GOT-OCR 2's tower knows eager attention only, and its model says so of itself.
    eager = {"": "eager", "vision_config": "eager", "text_config": attn}
    return build_from(config, attn=eager if model_type == "got_ocr2" else attn, seed=seed)


def make_pixel_inputs(
    model: PreTrainedModel,
    images: Sequence[int] = (1, 2),
    words: Sequence[int] = (5, 8),
    seed: int = 0,
    *,
    touching: bool = False,
) -> Inputs:
    """Left-padded samples with so many images and words each; the sizes of the images go round.

    `touching`: nothing stands between the tokens of two images.
    """
    generator = torch.Generator().manual_seed(seed)
    tower, samples, number = TOWERS[model.config.model_type], [], 0
    rows = []
    for count, length in zip(images, words, strict=True):
        text = torch.randint(FIRST_TEXT, LAST_TEXT + 1, (length,), generator=generator).tolist()
        own = [tower.image(number + i, generator) for i in range(count)]
        number += count
        ids = [1]
        for one in own:
            ids += [IMAGE] * sum(one.counts) if touching else [text.pop(), *one.ids]
        rows.append(torch.tensor([*ids, *text]))
        samples.append(own)
    longest = max(map(len, rows))
    ids = torch.stack([pad(row, (longest - len(row), 0), value=PAD) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    inputs = Inputs(input_ids=ids, attention_mask=mask, **_tensors(tower, samples))
    if "mm_token_type_ids" in inspect.signature(model.base_model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    inputs.samples = samples
    return inputs


def _tensors(tower: Tower, samples: list[list[TowerImage]]) -> dict[str, Tensor]:
    """What the towers gets of all images, padded to the largest."""
    images = [one for own in samples for one in own]
    out = {}
    start = 0
    for one in images:  # Molmo2's tokens name their patches by their numbers in the batch
        if "image_token_pooling" in one.tensors:
            one.tensors["image_token_pooling"] += start
            start += one.tensors["pixel_values"].shape[:2].numel()
    for name in images[0].tensors if images else ():
        shape = [max(sizes) for sizes in zip(*(one.tensors[name].shape[1:] for one in images), strict=True)]
        fill = tower.fillers.get(name, 0)
        padded = [_grown(one.tensors[name], shape, fill) for one in images]
        if not tower.by_sample:
            out[name] = torch.cat(padded)
            continue
        most, rest = max(map(len, samples)), iter(padded)
        rows = [torch.cat([next(rest) for _ in own]) if own else padded[0][:0] for own in samples]
        out[name] = torch.stack([torch.cat([row, row.new_zeros(most - len(row), *shape)]) for row in rows])
    return out


def _grown(tensor: Tensor, shape: list[int], fill: int) -> Tensor:
    """Every axis but the first padded at its end to `shape`."""
    missing = [0, *(size - own for size, own in zip(shape, tensor.shape[1:], strict=True))]
    return pad(tensor, [end for one in reversed(missing) for end in (0, one)], value=fill)
