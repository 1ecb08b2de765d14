"""What Qwen's models in vLLM need to take kept rows: classes made on top of a family's own ones.

Their positions have three axes and follow from the grid, which comes with the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import DictEmbeddingItems

from ..payload import GRID, KEPT, Bounds
from .kept import (
    bounds_of,
    check_bare,
    is_embedded,
    kept_fields,
    kept_items,
    positions_of_kept,
    refuse_videos,
    rows_given,
    rows_in_place,
)


def _kept_parser(parser: Any) -> Any:
    """The family's parser with images as kept rows."""

    class Parser(parser):
        """Images as kept rows; everything else as the model's own parser reads it."""

        bounds: Bounds | None = None

        def _parse_image_data(self, data: Any) -> Any:
            if isinstance(data, Mapping) and KEPT in data:
                return kept_items(data, self.bounds)
            if is_embedded(data):
                check_bare(data, self.bounds)
            return super()._parse_image_data(data)

        def _parse_video_data(self, data: Any) -> Any:
            refuse_videos(data)
            return super()._parse_video_data(data)

    return Parser


def kept_model(model: Any, *, parser: Any, info: Any, processor: Any, dummy_inputs: Any, levels: bool = False) -> Any:
    """A model of vLLM that also takes kept rows with their places, registered with its processor.

    Args:
        model, parser, info, processor, dummy_inputs: the family's own classes, which read everything else.
        levels: rows hold DeepStack's levels behind the embedding.
    """

    Parser = _kept_parser(parser)

    class Info(info):
        def get_data_parser(self) -> Any:
            vision = self.get_hf_config().vision_config
            width = self._get_expected_hidden_size()
            if levels and width is not None:
                width *= 1 + len(vision.deepstack_visual_indexes)
            kept = Parser(
                vision.spatial_merge_size,
                video_needs_metadata=True,
                expected_hidden_size=width,
                allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
            )
            kept.bounds = bounds_of(self, width, vision.spatial_merge_size)
            return kept

    class Processor(processor):
        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
            if KEPT in hf_inputs:
                return kept_fields(GRID)
            return super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)

        def _get_prompt_updates(
            self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
        ) -> Sequence[Any]:
            images = mm_items.get("image")
            if not (isinstance(images, DictEmbeddingItems) and KEPT in images.get(0)):
                return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
            return rows_in_place(images, self.info.get_hf_config().image_token_id)

    @MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=dummy_inputs)
    class Kept(model):
        def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
            """The model's own positions of the unpruned prompt, and of these the kept columns."""
            plain = super().get_mrope_input_positions
            return positions_of_kept(
                len(input_tokens), mm_features, lambda tokens, whole: plain([0] * tokens, whole)[0]
            )

        def embed_multimodal(self, **kwargs: object) -> Any:
            rows = rows_given(kwargs)
            return rows if rows is not None else super().embed_multimodal(**kwargs)

    return Kept
