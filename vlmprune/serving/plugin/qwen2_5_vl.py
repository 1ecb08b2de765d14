"""Qwen2.5-VL in vLLM whose pruned images keep their original positions of three axes."""

from __future__ import annotations

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser

from .qwen import kept_model

KeptQwen2_5_VL = kept_model(
    Qwen2_5_VLForConditionalGeneration,
    parser=Qwen2VLMultiModalDataParser,
    info=Qwen2_5_VLProcessingInfo,
    processor=Qwen2_5_VLMultiModalProcessor,
    dummy_inputs=Qwen2_5_VLDummyInputsBuilder,
)
