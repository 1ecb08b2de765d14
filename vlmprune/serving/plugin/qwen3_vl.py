"""Qwen3-VL in vLLM whose pruned images keep their original positions and the tower's levels that DeepStack adds."""

from __future__ import annotations

from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalDataParser,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)

from .qwen import kept_model

KeptQwen3VL = kept_model(
    Qwen3VLForConditionalGeneration,
    parser=Qwen3VLMultiModalDataParser,
    info=Qwen3VLProcessingInfo,
    processor=Qwen3VLMultiModalProcessor,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
    levels=True,
)
