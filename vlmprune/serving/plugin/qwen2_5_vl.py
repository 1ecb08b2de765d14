"""Qwen2.5-VL in vLLM whose pruned images keep their original positions of three axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import DictEmbeddingItems
from vllm.multimodal.processing import PromptReplacement

from ..wire import GRID, KEPT, ROWS
from .kept import kept_fields, kept_items, positions_of_kept, rows_given


class _Parser(Qwen2VLMultiModalDataParser):
    """Images as kept rows; everything else as the model's own parser reads it."""

    def _parse_image_data(self, data: Any) -> Any:
        if isinstance(data, dict) and KEPT in data:
            return kept_items(data, self.expected_hidden_size, GRID)
        return super()._parse_image_data(data)


class _Info(Qwen2_5_VLProcessingInfo):
    def get_data_parser(self) -> _Parser:
        return _Parser(
            self.get_hf_config().vision_config.spatial_merge_size,
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class _Processor(Qwen2_5_VLMultiModalProcessor):
    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        if KEPT in hf_inputs:
            return kept_fields(GRID)
        return super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        images = mm_items.get("image")
        if not (isinstance(images, DictEmbeddingItems) and KEPT in images.get(0)):
            return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        placeholder = self.info.get_hf_config().image_token_id
        return [
            PromptReplacement(
                modality="image",
                target=[placeholder],
                replacement=lambda number: [placeholder] * len(images.get(number)[ROWS]),
            )
        ]


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class KeptQwen2_5_VL(Qwen2_5_VLForConditionalGeneration):
    """`Qwen2_5_VLForConditionalGeneration` that also takes kept rows with their places."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """The model's own positions of the unpruned prompt, and of these the kept columns."""
        plain = super().get_mrope_input_positions
        return positions_of_kept(len(input_tokens), mm_features, lambda tokens, whole: plain([0] * tokens, whole)[0])

    def embed_multimodal(self, **kwargs: object) -> Any:
        rows = rows_given(kwargs)
        return rows if rows is not None else super().embed_multimodal(**kwargs)
