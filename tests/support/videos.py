"""Prompts with videos for tiny models: any number of them and of images per sample, in any order, left-padded.

`video_model("qwen3_vl")` is a tiny model whose towers run, `make_video_inputs(model, ("iv", "vvi"))` a batch of one
sample per word, i an image and v a video. What a processor would write around the frames is written by hand from what
the processors of transformers do; nothing here comes from the package. Shapes: S sequence, V visual tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from . import tiny_families
from .tiny_families import _FAMILIES, BOS, CLOSE, FIRST_TEXT, LAST_TEXT, OPEN, PAD, WHOLE, Image, Inputs, Sample

try:
    from . import generic
    from .generic.towers import TOWERS, _tensors, build_tower_model

    GENERIC: tuple[str, ...] = (
        "llava_next_video", "glm4v", "qwen3_5", "qwen3_vl_moe", "perception_lm", "video_llava"
    )  # fmt: skip
except ImportError:  # the oldest transformers that is supported lacks some of the types there
    GENERIC = ()

DECLARED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", "internvl")
VIDEO_FAMILIES = DECLARED + GENERIC
FRAMES = 3  # of the families that want as many in every video of a batch
SIZES = ((2, 4, 6), (3, 4, 4), (1, 6, 4))  # (t, h, w) in patches, of the families with a grid
STEPS = (1.0, 4.0, 0.5)  # seconds between two frames of each of those


def image_id(model: Any) -> int:
    return int(model.config.image_token_id)


def video_id(model: Any) -> int:
    """What stands for a token of a video; the frames of some families come as images."""
    if model.config.model_type in _ONE_ID:
        return image_id(model)
    return int(model.config.video_token_id)


def visual(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Bool [B, S]: the tokens of images and videos."""
    ids = inputs["input_ids"]
    return (ids == image_id(model)) | (ids == video_id(model))


def language_layers(model: Any) -> Any:
    base = model.model
    return (base.text_model if hasattr(base, "text_model") else base.language_model).layers


@cache
def video_model(model_type: str, attn: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """Built once: wrap it in a `with` block, change nothing else."""
    if model_type in DECLARED:
        return tiny_families.build(model_type, attn=attn, seed=seed)
    if model_type == "perception_lm":  # its tower needs timm: features are handed over
        return _perception(generic.build_generic(model_type, attn=attn, seed=seed))
    model = build_tower_model(model_type, attn=attn, seed=seed)
    if model_type == "glm4v":  # the ids are beyond the tiny vocabulary
        model.config.video_start_token_id, model.config.video_end_token_id = 116, 117
    return model


def _perception(model: PreTrainedModel) -> PreTrainedModel:
    """Images [n, tiles, 3, H, W] and videos [n, frames, 3, H, W] alike: 9 tokens a tile or frame, of its pixels."""
    features = model.base_model.get_image_features
    width = model.config.get_text_config().hidden_size
    mix = torch.randn(3 * 8 * 8, 9 * width, generator=torch.Generator().manual_seed(7)) / 14

    def encode(pixel_values: Tensor, **options: Any) -> Any:
        out = features(pixel_values=pixel_values.flatten(0, 1))
        out.pooler_output = (pixel_values.flatten(0, 1).flatten(1) @ mix).unflatten(1, (9, width))
        out.last_hidden_state = out.pooler_output
        return out

    encode.__signature__ = inspect.signature(type(model.base_model).get_image_features)  # type: ignore[attr-defined]
    model.base_model.get_image_features = encode
    return model


# --- one video -------------------------------------------------------------------------------------------------------


def _thw(model: Any, number: int, generator: torch.Generator, *, between: bool) -> Image:
    """Patches with a grid; `between`: every frame has its time before it and marks around it."""
    t, h, w = SIZES[number % 3]
    own, tokens = video_id(model), h * w // 4
    if between:
        ids = [token for frame in range(t) for token in (FIRST_TEXT + frame, OPEN, *[own] * tokens, CLOSE)]
    else:
        ids = [OPEN, *[own] * (t * tokens), CLOSE]
    pixels = torch.randn(t * h * w, 3 * 2 * 4 * 4, generator=generator)
    tensors = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[t, h, w]])}
    if model.config.model_type == "qwen2_5_vl":
        tensors["second_per_grid_ts"] = torch.tensor([STEPS[number % 3]])
    if model.config.model_type == "glm4v":
        ids = [model.config.video_start_token_id, *ids, model.config.video_end_token_id]
    return Image(ids, tensors)


def _stacked(model: Any, generator: torch.Generator, tokens: int, side: int = 12) -> Image:
    """One tensor of frames per video, `tokens` for all of them."""
    pixels = torch.randn(1, FRAMES, 3, side, side, generator=generator)
    return Image([video_id(model)] * tokens, {"pixel_values_videos": pixels})


def _as_images(model: Any, number: int, generator: torch.Generator) -> Image:
    """Frames that come as images do, words before each."""
    frames, side = 2 + number % 2, model.config.vision_config.image_size
    around = ([OPEN, WHOLE], [OPEN]) if model.config.model_type == "smolvlm" else ([OPEN], [CLOSE])
    ids = [token for frame in range(frames)
           for token in (FIRST_TEXT + frame, *around[0], *[image_id(model)] * 9, *around[1])]  # fmt: skip
    side = side if isinstance(side, int) else side[0]
    return Image(ids, {"pixel_values": torch.randn(frames, 3, side, side, generator=generator)})


_CLIPS: dict[str, Callable[[Any, int, torch.Generator], Image]] = {
    "qwen2_vl": lambda model, number, generator: _thw(model, number, generator, between=False),
    "qwen2_5_vl": lambda model, number, generator: _thw(model, number, generator, between=False),
    "qwen3_vl": lambda model, number, generator: _thw(model, number, generator, between=True),
    "qwen3_vl_moe": lambda model, number, generator: _thw(model, number, generator, between=True),
    "qwen3_5": lambda model, number, generator: _thw(model, number, generator, between=True),
    "glm4v": lambda model, number, generator: _thw(model, number, generator, between=True),
    # 3 x 3 patches: pooled to 2 x 2 a frame, and a newline behind all; to 1 x 1; a class token and all nine.
    "llava_onevision": lambda model, number, generator: _stacked(model, generator, FRAMES * 4 + 1),
    "llava_next_video": lambda model, number, generator: _stacked(model, generator, FRAMES * 1),
    "video_llava": lambda model, number, generator: _stacked(model, generator, FRAMES * 10),
    "perception_lm": lambda model, number, generator: _stacked(model, generator, FRAMES * 9, side=8),
    "smolvlm": _as_images,
    "internvl": _as_images,
}


# --- batches ---------------------------------------------------------------------------------------------------------


def _picture(model: Any, number: int, several: bool, generator: torch.Generator) -> Image:
    kind = model.config.model_type
    if kind in DECLARED:
        return _FAMILIES[kind].image(model, number, several, generator)
    if kind == "perception_lm":
        return Image([image_id(model)] * 9, {"pixel_values": torch.randn(1, 1, 3, 8, 8, generator=generator)})
    one = TOWERS[kind].image(number, generator)
    return Image(one.ids, one.tensors)


def _image_tensors(model: Any, samples: list[list[Image]], ids: Tensor) -> dict[str, Tensor]:
    kind = model.config.model_type
    own = [Sample(ids, images) for images in samples]
    if not any(samples):
        return {}
    if kind in DECLARED:
        return _FAMILIES[kind].batch(own, ids)
    if kind == "perception_lm":
        return {"pixel_values": torch.cat([one.tensors["pixel_values"] for images in samples for one in images])}
    return _tensors(TOWERS[kind], samples)  # type: ignore[arg-type]  # they have the same tensors


def make_video_inputs(
    model: Any, samples: Sequence[str] = ("viv", "iv"), words: Sequence[int] = (5, 9), seed: int = 0
) -> Inputs:
    """A left-padded batch: sample i has `words[i]` words and the images and videos of `samples[i]`, a word before each.

    The frames of SmolVLM and InternVL come as images; `hint(samples)` says which they are.
    """
    generator = torch.Generator().manual_seed(seed)
    as_images = model.config.model_type in ("smolvlm", "internvl")
    rows, pictures, clips, number = [], [], [], 0
    for word, length in zip(samples, words, strict=True):
        text = torch.randint(FIRST_TEXT, LAST_TEXT + 1, (length,), generator=generator).tolist()
        ids, shown, filmed = [BOS], [], []
        for letter in word:
            if letter == "v":
                one = _CLIPS[model.config.model_type](model, number, generator)
                (shown if as_images else filmed).append(one)
            else:
                one = _picture(model, number, word.count("i") > 1, generator)
                shown.append(one)
            ids += [text.pop(), *one.ids]
            number += 1
        rows.append(torch.tensor([*ids, *text]))
        pictures.append(shown)
        clips.append(filmed)
    longest = max(map(len, rows))
    ids = torch.stack([pad(row, (longest - len(row), 0), value=PAD) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    inputs = Inputs(input_ids=ids, attention_mask=mask, **_image_tensors(model, pictures, ids))
    films = [one for own in clips for one in own]
    for name in films[0].tensors if films else ():
        inputs[name] = torch.cat([one.tensors[name] for one in films])
    if "mm_token_type_ids" in inspect.signature(model.base_model.forward).parameters:
        inputs["mm_token_type_ids"] = _types(model, ids)
    return inputs


def _types(model: Any, ids: Tensor) -> Tensor:
    """0 at text, 1 at images, 2 at videos."""
    if model.config.model_type != "glm4v":
        return (ids == image_id(model)).long() + 2 * (ids == video_id(model)).long()
    config = model.config
    inside = (ids == config.video_start_token_id).cumsum(1) > (ids == config.video_end_token_id).cumsum(1)
    return (ids == image_id(model)).long() * (1 + inside.long())


def hint(samples: Sequence[str]) -> list[list[int]]:
    """`video_frames` of SmolVLM's and InternVL's batches."""
    number, out = 0, []
    for word in samples:
        out.append([2 + (number + i) % 2 if letter == "v" else 0 for i, letter in enumerate(word)])
        number += len(word)
    return out


# --- any type, its features handed over ------------------------------------------------------------------------------

_ONE_ID = ("smolvlm", "internvl", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "glmga", "nemotron_h_omni", "molmo2")
_HANDED, _EACH = 2, 9  # frames of a video and tokens of a frame


def video_subject(model_type: str) -> tuple[Any, Inputs, dict[str, Any]] | None:
    """A tiny model, a prompt with videos and what else `generate` is given; None of a type that takes no videos.

    Raises:
        LookupError: no prompt was found that the plain model runs on.
    """
    if model_type in VIDEO_FAMILIES:
        samples = ("v", "vv") if model_type == "glm4v" else ("viv", "iv")
        model = video_model(model_type)
        more = {"video_frames": hint(samples)} if model_type in ("smolvlm", "internvl") else {}
        return model, make_video_inputs(model, samples), more
    build = tiny_families.build if model_type in tiny_families.FAMILIES else generic.build_generic
    model = build(model_type)
    forwards = [inspect.signature(part.forward).parameters for part in (model, model.base_model)]
    if not any("pixel_values_videos" in given for given in forwards):
        return None
    for form in dict.fromkeys((generic.FORMS.get(model_type, "list"), "list", "flat")):
        hand_over_videos(model, form)
        for apart in (False, True):
            inputs = handed_video_inputs(model, apart=apart)
            try:
                model.generate(**inputs, max_new_tokens=2, do_sample=False)
            except Exception:  # whatever a model says to features of another form or a prompt that it does not take
                continue
            return model, inputs, {}
    raise LookupError(model_type)


def hand_over_videos(model: Any, form: str) -> None:
    """Let the instance's encoder of videos return features of each of a video's frames, as images' are."""
    base, width = model.base_model, model.config.get_text_config().hidden_size
    plain = inspect.signature(type(base).get_video_features)

    def features(pixel_values_videos: Tensor, *rest: Any, **options: Any) -> Any:
        generator = torch.Generator().manual_seed(5)
        rows = [torch.randn(_HANDED * _EACH, width, generator=generator) for _ in range(2)]
        whole = torch.stack(rows)
        out = BaseModelOutputWithPooling(last_hidden_state=whole)
        out.pooler_output = {"list": rows, "flat": whole.flatten(0, 1), "stack": whole}[form]
        levels = [torch.randn(whole.shape, generator=generator) for _ in range(3)]
        out.deepstack_features = [list(level) if form == "list" else level.flatten(0, 1) for level in levels]
        return out

    features.__signature__ = plain.replace(parameters=list(plain.parameters.values())[1:])  # type: ignore[attr-defined]
    base.get_video_features = features


def handed_video_inputs(model: Any, *, apart: bool) -> Inputs:
    """Two left-padded samples with a video each; `apart`: words stand between the frames."""
    kind, own = model.config.model_type, video_id(model)
    merge = getattr(model.config.vision_config, "spatial_merge_size", None) or 2
    opening, closing = (getattr(model.config, f"vision_{end}_token_id", None) or other
                        for end, other in (("start", OPEN), ("end", CLOSE)))  # fmt: skip
    rows = []
    for words in ([20, 21, 22], [23, 24, 25, 26, 27]):
        runs = [[opening, *[own] * _EACH, closing, 30 + frame] for frame in range(_HANDED)]
        one = [opening, *[own] * (_HANDED * _EACH), closing]
        rows.append(torch.tensor([BOS, *([i for run in runs for i in run] if apart else one), *words]))
    longest = max(map(len, rows))
    ids = torch.stack([pad(row, (longest - len(row), 0), value=PAD) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    frames = 2 * _HANDED if kind == "ernie4_5_vl_moe" else _HANDED  # it merges neighbours
    # MiniCPM-V packs the patches of all frames into one row.
    pixels = torch.zeros(_HANDED, 3, 8, 8) if kind.startswith("minicpm") else torch.zeros(2, _HANDED, 3, 8, 8)
    inputs = Inputs(input_ids=ids, attention_mask=mask, pixel_values_videos=pixels)
    more = {
        "video_grid_thw": torch.tensor([[frames, 3 * merge, 3 * merge]] * 2),
        "num_frames_per_video": torch.tensor([_HANDED] * 2),
        "video_second_per_grid": torch.tensor([1.0, 1.0]),
        "mm_token_type_ids": 2 * (ids == own).long(),
        "moe_mm_token_type_ids": (ids == own).long(),
        "token_type_ids": (ids == own).long(),
    }
    taken = inspect.signature(model.base_model.forward).parameters
    inputs.update({name: value for name, value in more.items() if name in taken})
    return inputs
