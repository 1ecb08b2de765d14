"""LLaVA in vLLM whose pruned images keep their original positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import DictEmbeddingItems

from .kept import KeptParser, bounds_of, kept_fields, positions_of_kept, rows_given, rows_in_place


class _Info(LlavaProcessingInfo):
    def get_data_parser(self) -> KeptParser:
        width = self._get_expected_hidden_size()
        return KeptParser(
            bounds_of(self, width),
            expected_hidden_size=width,
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class _Processor(LlavaMultiModalProcessor):
    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        return {**super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs), **kept_fields()}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        images = mm_items.get("image")
        if not isinstance(images, DictEmbeddingItems):
            return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return rows_in_place(images, self.info.get_hf_config().image_token_index)


@MULTIMODAL_REGISTRY.register_processor(_Processor, info=_Info, dummy_inputs=LlavaDummyInputsBuilder)
class KeptLlava(LlavaForConditionalGeneration, SupportsMRoPE):
    """`LlavaForConditionalGeneration` that also takes kept rows with their places."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """One running number over the unpruned prompt, three times: vLLM has a place for it only there."""
        return positions_of_kept(len(input_tokens), mm_features, lambda tokens, _: torch.arange(tokens).expand(3, -1))

    def embed_multimodal(self, **kwargs: object) -> Any:
        rows = rows_given(kwargs)
        return rows if rows is not None else super().embed_multimodal(**kwargs)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        # The rotary table ends at the model's longest sequence. vLLM counts tokens, of which there are fewer than
        # positions: reading beyond the table would end the process.
        longest = self.config.text_config.max_position_embeddings - 1
        return super().forward(input_ids, positions[0].clamp(max=longest), intermediate_tensors, inputs_embeds)
