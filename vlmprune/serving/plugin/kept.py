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

from ..wire import KEPT, ROWS, VISUAL, check_kept, check_rows


def kept_fields(*more: str) -> dict[str, MultiModalFieldConfig]:
    """How the fields of several images lie in a batch: one entry an image, of different lengths."""
    on_cpu = {name: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for name in (KEPT, VISUAL, *more)}
    return {ROWS: MultiModalFieldConfig.batched("image"), **on_cpu}


def kept_items(data: Mapping[str, Any], width: int | None, *more: str) -> DictEmbeddingItems:
    """The images of one prompt, checked: what is wrong with them must not reach the engine.

    Args:
        data: `image_embeds`, `kept`, `visual` and `more`, one entry an image. width: D of the language model.
    Raises:
        VlmpruneError: a field is missing, or does not fit.
    """
    names = {ROWS, KEPT, VISUAL, *more}
    items = DictEmbeddingItems(
        data, modality="image", required_fields=names, fields_factory=lambda _: kept_fields(*more)
    )
    for image in items.get_all():
        rows = check_rows(image[ROWS], width if width is not None else image[ROWS].shape[-1])
        check_kept(image[KEPT], len(rows), image[VISUAL])
    return items


class KeptParser(MultiModalDataParser):
    """Reads images as pixels, as bare embeddings, or as kept rows.

    Args:
        more: fields beside those that every family has.
    """

    embedding_fields: ClassVar = {"image": {ROWS: "values", KEPT: "metadata", VISUAL: "metadata"}}

    def __init__(self, *more: str, **options: Any) -> None:
        super().__init__(**options)
        self._more = more

    def _parse_image_data(self, data: Any) -> Any:
        if isinstance(data, dict):
            return kept_items(data, self.expected_hidden_size, *self._more)
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
