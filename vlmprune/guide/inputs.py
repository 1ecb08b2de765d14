"""What a guide and the model it guides are given: the same inputs, some samples of a batch, a prompt with its answer.

Shapes: B batch, S sequence.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, GenerationMixin

from ..errors import VlmpruneError
from ..families import Family
from ..flow.frames import HINT, by_frame
from ..flow.locate import ImageSpan, SampleLayout
from ..hf.compatibility import CACHE_NAMES

# Arguments of a forward that are no part of the prompt.
_NOT_PROMPT = {
    "labels",
    *CACHE_NAMES,
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "logits_to_keep",
    "num_items_in_batch",
    "shift_labels",
    "cache_position",
    "inputs",
}
_LIKE_THE_LAST = {"cross_attention_mask"}
# One entry per token of the prompt.
_TOKEN_WISE = {"token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids", *_LIKE_THE_LAST}
_SAMPLE_WISE = {"input_ids", "attention_mask", "position_ids", "inputs_embeds", "batch_num_images", *_TOKEN_WISE}
# What describes videos without the word in its name.
_OF_VIDEOS = {"second_per_grid_ts", "num_frames_per_video"}


@cache
def generate_parameters() -> tuple[str, ...]:
    """Names of what `generate` takes, in order, `self` left out."""
    return tuple(inspect.signature(GenerationMixin.generate).parameters)[1:]


@cache
def _options() -> frozenset[str]:
    """Names of arguments that steer a call and are no part of its prompt."""
    return frozenset(vars(GenerationConfig())) | frozenset(generate_parameters()) | _NOT_PROMPT


def prompt_inputs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward or a `generate` that make up the prompt."""
    options = _options()
    return {name: value for name, value in kwargs.items() if name not in options and value is not None}


# Config fields that decide how many visual tokens an image has.
_GRID_FIELDS = {
    "image_grid_pinpoints",
    "image_seq_length",
    "mm_tokens_per_image",
    "scale_factor",
    "downsample_ratio",
    "vision_aspect_ratio",
    "vision_feature_select_strategy",
}
_VISION_FIELDS = ("image_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "max_num_tiles")


def same_inputs(model: Any, guide: Any) -> bool:
    """Whether the two models read the same token ids and pixels, as far as their configs say."""

    def read(config: Any) -> tuple[Any, ...]:
        names = {name for name in config.to_dict() if name.endswith(("token_id", "token_index"))} | _GRID_FIELDS
        own = {name: value for name in names if (value := getattr(config, name, None)) is not None}
        vision = [getattr(getattr(config, "vision_config", None), name, None) for name in _VISION_FIELDS]
        return config.get_text_config().vocab_size, own, vision

    ours, theirs = model.config, guide.config
    return ours.model_type == theirs.model_type and read(ours) == read(theirs)


def take_samples(
    family: Family, config: Any, inputs: dict[str, Any], samples: Sequence[int], layouts: Sequence[SampleLayout]
) -> tuple[dict[str, Any], list[Tensor]]:
    """The inputs of some samples of a batch.

    Args:
        inputs: of the whole batch. layouts: of the whole batch.
    Returns:
        The inputs, without whatever belongs to images or to videos where none of these samples has one; and the rows of
        the first axis of the images' and of the videos' pixels that they hold.
    """
    chosen = torch.tensor(list(samples))
    if not family.cross_attention and not any(layouts[b].images for b in samples):
        return _texts(inputs, chosen, inputs["input_ids"].shape, options=False), []
    taken: dict[str, Any] = {name: [inputs[name][b] for b in samples] for name in inputs.keys() & {HINT}}
    rows: list[Tensor] = []
    apart = "pixel_values_videos" in inputs
    if not apart:  # the frames of a video came as images
        layouts = [by_frame(layout) for layout in layouts]
    for kind in ("image", "video"):
        # What is neither's goes with the images.
        names = [name for name in inputs if (kind == "video") == ("video" in name or name in _OF_VIDEOS)]
        mine = {name: inputs[name] for name in names if name != HINT}
        own = [[span for span in layout.images if span.kind == kind or not apart] for layout in layouts]
        if not mine or not (family.cross_attention or any(own[b] for b in samples)):
            taken |= _texts(mine, chosen, inputs["input_ids"].shape)
            continue
        take = _by_length if family.adapter == "generic" else _by_kind
        some, index = take(family, config, mine, chosen, own, inputs["input_ids"].shape)
        taken |= some
        rows.append(index)
    return taken, rows


Owned = tuple[dict[str, Any], Tensor]  # inputs of some samples, and the rows of the pixels that they hold


def _by_kind(
    family: Family,
    config: Any,
    inputs: dict[str, Any],
    chosen: Tensor,
    spans: list[list[ImageSpan]],
    shape: torch.Size,
) -> Owned:
    """`take_samples` of a declared family: of its images with all that is no video's, or of its videos.

    `spans`: of each sample of the batch. `shape`: of the ids."""
    owners = torch.tensor([b for b, own in enumerate(spans) for _ in own], dtype=torch.long)
    images = torch.isin(owners, chosen).nonzero()[:, 0]
    rows = chosen
    if family.pixel_axis != "sample":
        sizes = [family.pixel_rows(config, span.grid, span.count) for own in spans for span in own]
        rows = torch.isin(owners.repeat_interleave(torch.tensor(sizes, dtype=torch.long)), chosen).nonzero()[:, 0]
    taken: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in _SAMPLE_WISE:
            taken[name] = _of_samples(name, value, chosen)
        elif not _has_rows(value):
            taken[name] = value
        else:
            pixels = family.pixel_axis == "sample" or name.startswith("pixel")
            taken[name] = _rows(value, rows if pixels else images)
    return taken, rows


def _texts(inputs: dict[str, Any], chosen: Tensor, shape: torch.Size, *, options: bool = True) -> dict[str, Any]:
    """The inputs of samples without an image, or without a video, and nothing of the others'; `options`: with what has
    no rows."""
    return {
        name: _of_samples(name, value, chosen) if _has_rows(value) else value
        for name, value in inputs.items()
        if name in _SAMPLE_WISE or getattr(value, "shape", None) == shape or (options and not _has_rows(value))
    }


def _of_samples(name: str, value: Tensor, chosen: Tensor) -> Tensor:
    """A tensor with a row for each sample, position ids behind an axis of their own."""
    return value[..., chosen, :] if name == "position_ids" else value[chosen.to(value.device)]


def _rows(value: Any, index: Tensor) -> Any:
    """Some of a tensor's rows, or of a list's entries."""
    return value[index.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in index.tolist()]


def _by_length(
    family: Family,
    config: Any,
    inputs: dict[str, Any],
    chosen: Tensor,
    spans: list[list[ImageSpan]],
    shape: torch.Size,
) -> Owned:
    """Likewise of a family of which nothing is declared: what a tensor has a row for, its length says.

    Raises:
        VlmpruneError: the rows of one are none of samples, images, their patches or tiles, and visual tokens.
    """
    parts, owners = _owners(inputs, spans)
    whole = _names_patches(inputs, sum(span.count for own in spans for span in own))
    taken: dict[str, Any] = {}
    rows = chosen
    for name, value in inputs.items():
        pixels = name.startswith("pixel_values")
        if isinstance(value, Tensor) and (name in _SAMPLE_WISE or value.shape == shape):
            taken[name] = _of_samples(name, value, chosen)
        elif (pixels and whole) or not _has_rows(value):
            taken[name] = value
        else:
            index = _rows_of(name, value, [*parts, *owners] if pixels else owners, chosen)
            taken[name] = _rows(value, index)
            rows = index if pixels else rows
    return taken, rows


def _has_rows(value: Any) -> bool:
    return value.dim() > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple)


def _rows_of(name: str, value: Any, owners: list[Tensor], chosen: Tensor) -> Tensor:
    """The rows of an argument that belong to the samples `chosen`, by the first of `owners` that is as long."""
    for own in owners:
        if len(own) == len(value):
            return torch.isin(own, chosen).nonzero()[:, 0]
    raise VlmpruneError(
        f"{name} has {len(value)} rows, which are none of samples, of their images or of visual tokens, so samples "
        "that exit cannot be taken out; set exit_at=None, or ask one sample at a time."
    )


def _names_patches(inputs: dict[str, Any], tokens: int) -> bool:
    """Whether a tensor has a row of numbers for each visual token: of the patches it is made of, counted over all
    pixels of the batch, which must stay together then (Molmo2)."""
    return any(
        isinstance(value, Tensor) and value.dim() == 2 and len(value) == tokens and not value.is_floating_point()
        for name, value in inputs.items()
        if name not in _SAMPLE_WISE
    )


def _owners(inputs: dict[str, Any], spans: list[list[ImageSpan]]) -> tuple[list[Tensor], list[Tensor]]:
    """The sample of each row: of the parts of images or videos that pixels may be, and of whatever a tensor may have a
    row for, the likeliest first."""
    images = torch.tensor([b for b, own in enumerate(spans) for _ in own], dtype=torch.long)
    counts = torch.tensor([span.count for own in spans for span in own], dtype=torch.long)
    tokens, samples = images.repeat_interleave(counts), torch.arange(len(spans))
    pixels = inputs.get("pixel_values", inputs.get("pixel_values_images"))
    if isinstance(pixels, Tensor) and pixels.dim() == 5 and "image_sizes" not in inputs:
        each = pixels.shape[1]
        if len(pixels) == len(samples) and all(len(own) <= each for own in spans):
            return [], [samples, images, tokens]  # [samples, images, ...]
        return [images[::each]], [images, samples, tokens]  # [images, tiles, ...], each tile with tokens of its own
    parts = []
    for name, value in inputs.items():
        if isinstance(value, Tensor) and len(value) == len(images):
            if name in ("image_grid_thw", "video_grid_thw"):
                parts.append(images.repeat_interleave(value.prod(dim=1).cpu()))
            elif name in ("image_num_crops", "num_frames_per_video"):
                parts.append(images.repeat_interleave(value.cpu()))
    return parts, [images, samples, tokens]


def with_answers(inputs: dict[str, Any], answers: Sequence[Tensor], pad: int) -> dict[str, Any]:
    """A prompt and its answer in one sequence per sample, padded on the left whatever the prompt's padding.

    Args:
        answers: per sample [n] token ids.
    """
    ids: Tensor = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()

    def joined(values: Tensor, tails: Sequence[Tensor], filler: int = 0) -> Tensor:
        rows = [torch.cat([own[real], tail.to(own)]) for own, real, tail in zip(values, valid, tails, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=filler, padding_side="left")

    out = {name: value for name, value in inputs.items() if name != "position_ids"}
    out["input_ids"] = joined(ids, answers, pad)
    out["attention_mask"] = joined(valid.long(), [torch.ones_like(answer) for answer in answers])
    for name in _TOKEN_WISE & inputs.keys():
        # A generated token gets 0, or what the last token of its prompt has.
        last = [own[real][-1] * (name in _LIKE_THE_LAST) for own, real in zip(inputs[name], valid, strict=True)]
        tails = [one.expand(len(answer), *one.shape) for one, answer in zip(last, answers, strict=True)]
        out[name] = joined(inputs[name], tails)
    return out


def end_ids(value: Any) -> list[int]:
    """Token ids from what a generation config holds: None, one, or several."""
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list | tuple | Tensor) else [int(value)]
