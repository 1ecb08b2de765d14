"""The models whose pruned images keep their original positions; Qwen's have three axes and follow from the grid."""

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
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from .kept import kept_model


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PositionedLlava(LlavaForConditionalGeneration, SupportsMRoPE):
    """LLaVA that is asked for positions, which vLLM does of models with M-RoPE only."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """One running number, three times."""
        return torch.arange(len(input_tokens)).expand(3, -1), 0

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


VlmpruneLlava = kept_model(PositionedLlava)
VlmpruneQwen2_5_VL = kept_model(Qwen2_5_VLForConditionalGeneration)
VlmpruneQwen3VL = kept_model(Qwen3VLForConditionalGeneration)
