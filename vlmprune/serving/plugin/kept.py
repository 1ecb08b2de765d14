"""What the plugin's models share: an image given as its kept rows, and the positions that these had among all rows.

The hooks into vLLM are private ones, read in 0.32. Shapes: K kept tokens of an image, V all of them, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, MultiModalDataParser
from vllm.multimodal.processing import PromptReplacement

from ..payload import GRID, KEPT, ROWS, VISUAL, BadEmbeddings, Bounds, check_grid, check_image, check_prompt, check_rows
from .decode import expect


def kept_fields(*more: str) -> dict[str, MultiModalFieldConfig]:
    """How the fields of several images lie in a batch: one entry an image, of different lengths."""
    on_cpu = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (KEPT, VISUAL, *more)}
    return {ROWS: MultiModalFieldConfig.batched("image"), **on_cpu}


def bounds_of(info: Any, width: int | None, merge: int | None = None) -> Bounds | None:
    """What images of the served model can be like, which the decoder of embeddings is told too; None where the engine
    takes no embeddings.

    Args:
        info: vLLM's knowledge of the model. width: R. merge: `Bounds.merge`.
    """
    if width is None:
        return None
    config = info.ctx.model_config
    longest = int(getattr(config.hf_text_config, "max_position_embeddings", 0))
    bounds = Bounds(width, int(info.get_max_image_tokens()), merge is None, max(longest, config.max_model_len), merge)
    expect(bounds)
    return bounds


def columns_of(data: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """The fields of each image, from one sequence or tensor a field.

    Raises:
        BadEmbeddings: a field is neither, or they are of different numbers of images.
    """
    lengths = set()
    for name, column in data.items():
        if not isinstance(column, list | tuple | Tensor) or (isinstance(column, Tensor) and column.dim() == 0):
            raise BadEmbeddings(f"The field {name!r:.40} of the images is not a list of tensors; send one per image.")
        lengths.add(len(column))
    if len(lengths) != 1 or not max(lengths):
        raise BadEmbeddings(f"The fields of the images have {sorted(lengths)} entries; send one for every image.")
    return [{name: column[number] for name, column in data.items()} for number in range(max(lengths))]


def _needed(bounds: Bounds | None) -> Bounds:
    if bounds is None:
        raise BadEmbeddings("This engine takes no image embeddings; start it with --enable-mm-embeds.")
    return bounds


def kept_items(data: Mapping[str, Any], bounds: Bounds | None) -> DictEmbeddingItems:
    """The images of one prompt, checked: what is wrong with them must not reach the engine.

    Args:
        data: `image_embeds`, `kept`, `visual`, and `image_grid_thw` of families with grids, one entry an image.
    Raises:
        BadEmbeddings: a field is missing, or does not fit.
    """
    bounds = _needed(bounds)
    check_prompt([check_image(fields, bounds) for fields in columns_of(data)], bounds)
    more = () if bounds.merge is None else (GRID,)
    return DictEmbeddingItems(
        data, modality="image", required_fields=set(data), fields_factory=lambda _: kept_fields(*more)
    )


def check_bare(data: Any, bounds: Bounds | None) -> None:
    """Embeddings of whole images, as stock vLLM takes them: rows alone, or rows and grid.

    Raises:
        BadEmbeddings: they do not fit.
    """
    bounds = _needed(bounds)
    if isinstance(data, Mapping) and (bounds.merge is None or data.keys() != {ROWS, GRID}):
        raise BadEmbeddings(f"The images have the fields {sorted(map(str, data))!s:.80}; send what Encoder returns.")
    if not isinstance(data, Mapping):
        data = {ROWS: data}
    visual = []
    for fields in columns_of(data):
        rows = check_rows(fields[ROWS], bounds.width, bounds.visual)
        if bounds.merge is not None:
            check_grid(fields.get(GRID), len(rows), bounds.merge)
        visual.append(len(rows))
    check_prompt(visual, bounds)


def is_embedded(data: Any) -> bool:
    """Whether images come as embeddings: whatever vLLM takes for these, and every tensor but a batch of pixels."""
    pixels = isinstance(data, Tensor) and data.dim() == 4
    return (
        isinstance(data, Mapping)
        or MultiModalDataParser.is_embeddings(data)
        or (isinstance(data, Tensor) and not pixels)
    )


def refuse_videos(data: Any) -> None:
    """Videos come as frames: the checks of embeddings know images.

    Raises:
        BadEmbeddings: they come as embeddings.
    """
    if isinstance(data, Mapping) or MultiModalDataParser.is_embeddings(data):
        raise BadEmbeddings("This engine takes no embeddings of videos; send the frames.")


class KeptParser(MultiModalDataParser):
    """Reads images as pixels, as bare embeddings, or as kept rows."""

    embedding_fields: ClassVar = {"image": {ROWS: "values", KEPT: "metadata", VISUAL: "metadata"}}

    def __init__(self, bounds: Bounds | None, **options: Any) -> None:
        super().__init__(**options)
        self._bounds = bounds

    def _parse_image_data(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            return kept_items(data, self._bounds)
        if is_embedded(data):
            check_bare(data, self._bounds)
        return super()._parse_image_data(data)


def kept_of(feature: MultiModalFeatureSpec) -> tuple[Tensor, int] | None:
    """The kept indices and V of an image, None where it came as pixels."""
    data = feature.data
    if data is None or KEPT not in data:
        return None
    return data[KEPT].data.cpu().long(), int(data[VISUAL].data)


def positions_of_kept(
    tokens: int,
    features: Sequence[MultiModalFeatureSpec],
    unpruned: Callable[[int, list[MultiModalFeatureSpec]], Tensor],
) -> tuple[Tensor, int]:
    """Positions [3, N] of a prompt of N tokens with pruned images, and what to add to the number of a later token.

    Args:
        unpruned: gives the positions [3, n] of the prompt with all its tokens, from their number and the images in it.
    """
    columns: list[Tensor] = []
    whole: list[MultiModalFeatureSpec] = []
    shift = at = 0
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        offset, length = feature.mm_position.offset, feature.mm_position.length
        kept = kept_of(feature)
        inside, visual = kept if kept is not None else (torch.arange(length), length)
        columns += [torch.arange(at, offset) + shift, inside + offset + shift]
        place = replace(feature.mm_position, offset=offset + shift, length=visual)
        whole.append(replace(feature, mm_position=place))
        shift += visual - length
        at = offset + length
    columns.append(torch.arange(at, tokens) + shift)
    positions = unpruned(tokens + shift, whole)
    return positions[:, torch.cat(columns)], int(positions.max()) + 1 - tokens


def rows_given(kwargs: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """The kept rows in what `embed_multimodal` was given, an image each; None where it was given pixels."""
    return tuple(kwargs[ROWS]) if KEPT in kwargs else None


def rows_in_place(images: DictEmbeddingItems, placeholder: int) -> list[PromptReplacement]:
    """An image's one placeholder in the prompt becomes as many as it has rows."""
    return [
        PromptReplacement(
            modality="image",
            target=[placeholder],
            replacement=lambda number: [placeholder] * len(images.get(number)[ROWS]),
        )
    ]
