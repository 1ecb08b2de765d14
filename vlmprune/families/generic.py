"""Any other decoder with visual tokens as rows of its sequence: what an adapter would declare, found by rule."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import VIDEO, UnsupportedModelError, VlmpruneError
from ..flow.locate import ImageGrid, no_place, plain_grid, video_grid, visual_runs
from .base import Family, Media
from .mechanisms import inner_generator, missing_mechanism, sequence_mechanism, takes

# Types whose conformance is tested; `list_families` names them.
TESTED: tuple[str, ...] = (
    "apertus1p5",
    "aria",
    "aya_vision",
    "blip-2",
    "chameleon",
    "cohere2_vision",
    "cohere_compass",
    "cosmos3_edge",
    "cosmos3_omni",
    "deepseek_ocr2",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "dots3_note",
    "emu3",
    "ernie4_5_vl_moe",
    "exaone4_5",
    "fast_vlm",
    "fuyu",
    "gemma3n",
    "gemma4",
    "gemma4_unified",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm_ocr",
    "glmga",
    "got_ocr2",
    "granite4_vision",
    "granite_docling",
    "hunyuan_vl",
    "hy_v4_vl",
    "hyperclovax_vision_v2",
    "idefics2",
    "instructblip",
    "janus",
    "kimi_k25",
    "lfm2_vl",
    "lfm3_vl",
    "lighton_ocr",
    "llama4",
    "llava_next_video",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m3_vl",
    "mistral3",
    "mistral_large4",
    "molmo2",
    "muse_glimmer",
    "nemotron_h_omni",
    "ovis2",
    "paddleocr_vl",
    "perception_lm",
    "pp_chart2table",
    "qianfan_ocr",
    "qwen2_5_omni_thinker",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl_moe",
    "shieldgemma2",
    "step3p7",
    "video_llama_3",
    "video_llava",
    "vipllava",
)
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "vision_embed_tokens")


@dataclass(frozen=True)
class GenericFamily(Family):
    """A family of which nothing is declared: parts are found in the model, images in what the vision stage returned."""

    adapter: ClassVar[str] = "generic"

    def language_model(self, model: Any) -> Any:
        return decoder_of(model)

    def base_model(self, model: Any) -> Any:
        return inner_generator(model) or model.base_model

    def vision_tower(self, model: Any) -> Any:
        """The model that encodes pixels, None where there is none to be found: it is timed, and shared with a guide."""
        base = model.base_model
        return next((part for name in _TOWERS if isinstance(part := getattr(base, name, None), nn.Module)), None)

    def class_token(self, model: Any) -> bool:
        return False


def decoder_of(model: Any) -> Any:
    """The module that holds the decoder layers, None where there is none."""
    seen: list[Any] = []
    inside = model
    while inside is not None and not isinstance(getattr(inside, "layers", None), nn.ModuleList):
        seen.append(inside)
        inside = next((one for one in _inner(inside) if not any(one is old for old in seen)), None)
    return inside


def _inner(inside: Any) -> Iterator[Any]:
    """The modules in which a module's decoder layers may be, the likeliest first."""
    if hasattr(inside, "get_decoder"):
        yield inside.get_decoder()
    for name in ("model", "decoder", "language_model", "text_model"):
        if isinstance(inner := getattr(inside, name, None), nn.Module):
            yield inner


def generic_family(model: Any) -> GenericFamily:
    """The adapter of a model of a type that none is declared for.

    Raises:
        UnsupportedModelError: its image does not stand as rows in its decoder's sequence, or they cannot be found.
    """
    config, text, places = model.config, decoder_of(model), not _resamples(model)
    given = takes(model) | takes(model.base_model)
    # One with `video_compression_mask` drops tokens by itself, by which pixels change (VideoLLaMA 3).
    videos = "pixel_values_videos" in given and "video_compression_mask" not in given
    what = f"Models of type {config.model_type!r} cannot be pruned, because a {type(model).__name__}"
    family = GenericFamily(
        config.model_type,
        functools.partial(grids, places=places),
        video_grids=functools.partial(video_grids, places=places) if videos else None,
        deepstack=bool({"deepstack_visual_embeds", "deepstack_features"} & takes(text)),
        multi_axis_positions=True,  # not known: they are left as they are
    )
    marked = bool(family.visual_ids(config))
    if (why := missing_mechanism(model, marked)) is not None:
        raise UnsupportedModelError(
            f"{what} {why}; use a decoder-only model that puts it in place of image tokens, of one of the types in "
            "vlmprune.list_families() or alike."
        )
    if not marked:
        raise UnsupportedModelError(
            f"{what} has no image token in its config; load an image-text-to-text model, of one of the types in "
            "vlmprune.list_families() or alike, or set config.image_token_id to the id that stands for visual tokens."
        )
    if text is None:
        raise UnsupportedModelError(f"{what} has no decoder layers where they are looked for; register its family.")
    if (why := sequence_mechanism(text)) is not None:
        raise UnsupportedModelError(f"{what} {why}; use a model whose layers attend to whatever keys are left.")
    return family


def grids(config: Any, media: Media, *, places: bool = True) -> list[ImageGrid]:
    """The images of a prompt: as many tokens each as the vision stage returned features, before it ran as many as its
    patches make, else each run of tokens.

    Where a token lies in its image is said only where the processor's grid or the tower's patches leave no doubt, and
    never without `places`.
    """
    assert media.visual is not None
    runs = [length for row in media.visual for _, length in visual_runs(row)]
    sizes = _sizes(config, media)
    features = media.get("feature_rows") or _merged(sizes, sum(runs))
    # Idefics2 returns its features by sample; its tower has encoded as many images as there are runs.
    by_sample = features is not None and len(features) < len(runs) == media.get("encoded_images")
    counts = runs if features is None or by_sample or sum(features) != sum(runs) else list(features)
    shapes = sizes if len(sizes) == len(counts) else [_only_size(config)] * len(counts)
    return [_grid(count, shape if places else None) for count, shape in zip(counts, shapes, strict=True)]


def video_grids(config: Any, media: Media, *, places: bool = True) -> list[ImageGrid]:
    """The videos of a prompt: as many frames each as the processor's grid or the pixels' shape say, and as many tokens
    as the vision stage returned features, by frame or by video, else all frames alike.

    Where a token lies in its frame is said where the processor's grid or the tower's patches leave no doubt.

    Raises:
        VlmpruneError: the number of frames is not known.
    """
    assert media.visual is not None
    shape: tuple[int, ...] = media.get("video_shape") or ()
    tokens = int(media.visual.sum())
    sizes: list[tuple[int, ...]] = [tuple(one) for one in media.rows("video_grid_thw") or media.rows("video_grids")]
    if sizes:
        frames = [size[0] for size in sizes]
    elif (numbers := media.get("num_frames_per_video")) is not None:
        frames = numbers.tolist()
    elif len(shape) == 5:  # [videos, frames, ...]
        frames = [shape[1]] * shape[0]
    else:
        raise VlmpruneError(VIDEO)
    rows = media.get("feature_rows") or []
    counts = list(rows) if len(rows) == len(frames) else _merged(sizes, tokens)
    if len(rows) == sum(frames) != len(frames):
        left = iter(rows)
        counts = [sum(next(left) for _ in range(t)) for t in frames]
    if counts is None:
        counts = [tokens // max(1, sum(frames)) * t for t in frames]
    patches = sizes or [_only_size(config) or (0, 0, 0)] * len(frames)
    return [_video(count, t, size, places) for count, t, size in zip(counts, frames, patches, strict=True)]


def _video(count: int, t: int, patches: tuple[int, ...], places: bool) -> ImageGrid:
    """A video of `count` tokens in t frames of so many `patches` (., h, w); neighbouring frames may share theirs."""
    _, h, w = patches
    for shared in (one for one in (1, 2, 4) if t % one == 0 and count % (t // one) == 0):
        each = count // (t // shared)
        merge = math.isqrt(h * w // each) if each else 0
        if places and merge and h % merge == w % merge == 0 and merge**2 * each == h * w:
            return video_grid(t // shared, h // merge, w // merge)
    each, behind = divmod(count, t)
    side = math.isqrt(each)
    if places and side**2 == each and h == w and side in (h // 2, math.ceil(h / 2)):  # pooled 2 x 2
        return video_grid(t, side, side, behind=behind)
    if places and each == h * w + 1:  # a class token in front
        return video_grid(t, h, w, placeless=1, behind=behind)
    frame = torch.cat([torch.arange(t).repeat_interleave(each), torch.full((behind,), -1)])
    return ImageGrid((t, 1, each), no_place(count), "video", frame)


def _merges(config: Any) -> bool:
    """Whether the tower takes images of any size, and merges patches of them; its `image_size` is then the largest."""
    return any(hasattr(one, "spatial_merge_size") for one in (config, getattr(config, "vision_config", None)))


def _sizes(config: Any, media: Media) -> list[tuple[int, ...]]:
    """The images' patches (t, h, w) before they are merged, by what the processor says of each; [] where nothing."""
    if found := media.rows("image_grid_thw"):
        return [tuple(shape) for shape in found]
    if found := media.rows("spatial_shapes"):
        return [(1, *shape) for shape in found]
    if (places := media.get("image_position_ids")) is not None:  # [images, patches, 2] of (x, y), fillers at -1
        return [(1, y + 1, x + 1) for x, y in places.amax(dim=1).tolist()]
    patch = _pair(config, "patch_size")
    if patch is None or not _merges(config):  # of other families these are sizes before anything was cut or padded
        return []
    return [(1, h // patch[0], w // patch[1]) for h, w in media.rows("image_sizes")]


def _only_size(config: Any) -> tuple[int, ...] | None:
    """The patches (t, h, w) of every image, where the tower takes one size."""
    side, patch = _pair(config, "image_size"), _pair(config, "patch_size")
    if side is None or patch is None or _merges(config):
        return None
    return 1, side[0] // patch[0], side[1] // patch[1]


def _merged(sizes: list[tuple[int, ...]], tokens: int) -> list[int] | None:
    """How many tokens each image has, where all merge as many patches into one; None where that does not work out."""
    patches = [math.prod(size) for size in sizes]
    each, rest = divmod(sum(patches), tokens) if tokens else (0, 0)
    if not each or rest or any(own % each for own in patches):
        return None
    return [own // each for own in patches]


def _pair(config: Any, name: str) -> tuple[int, int] | None:
    """A size in the vision config, given as one number or as height and width."""
    value = getattr(getattr(config, "vision_config", None), name, None)
    if isinstance(value, int):
        return value, value
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else None


def _grid(count: int, patches: tuple[int, ...] | None) -> ImageGrid:
    """Of an image with `count` tokens, each of which is a square of its `patches` (t, h, w)."""
    t, h, w = patches or (0, 0, 0)
    merge = math.isqrt(t * h * w // count) if count else 0
    if merge and h % merge == w % merge == 0 and merge**2 * count == t * h * w:
        return plain_grid(h // merge, w // merge, t)
    return ImageGrid((1, 1, count), no_place(count))


def _resamples(model: Any) -> bool:
    """Whether visual tokens are learned queries, which read all patches of an image and show no place in it."""
    names = (name.rpartition(".")[2] for name, _ in model.base_model.named_parameters())
    return any(name.startswith(("query", "queries", "latents")) for name in names)
