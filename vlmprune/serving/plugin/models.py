"""vLLM's models with pruned images: given as kept rows (`kept`), or pruned by the model itself (`pruned`)."""

from vllm.model_executor.models.gemma3_mm import Gemma3ForConditionalGeneration
from vllm.model_executor.models.idefics3 import Idefics3ForConditionalGeneration
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration
from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration
from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration
from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration
from vllm.model_executor.models.smolvlm import SmolVLMForConditionalGeneration
from vllm.multimodal import MULTIMODAL_REGISTRY

from .kept import kept_model
from .pruned import pruned_model


@MULTIMODAL_REGISTRY.register_processor(
    LlavaMultiModalProcessor, info=LlavaProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PatchLlava(LlavaForConditionalGeneration):
    """LLaVA whose tower is CLIP's or SigLIP's; vLLM's processor of it may be Pixtral's, with text between its rows."""


VlmpruneLlava = pruned_model(kept_model(PatchLlava))
VlmpruneQwen2_5_VL = pruned_model(kept_model(Qwen2_5_VLForConditionalGeneration))
VlmpruneQwen3VL = pruned_model(kept_model(Qwen3VLForConditionalGeneration))
VlmpruneQwen3_5 = pruned_model(Qwen3_5ForConditionalGeneration)
VlmpruneLlavaNext = pruned_model(LlavaNextForConditionalGeneration)
VlmpruneLlavaOnevision = pruned_model(LlavaOnevisionForConditionalGeneration)
VlmpruneInternVL = pruned_model(InternS1ForConditionalGeneration)
VlmpruneIdefics3 = pruned_model(Idefics3ForConditionalGeneration)
VlmpruneSmolVLM = pruned_model(SmolVLMForConditionalGeneration)
VlmpruneGemma3 = pruned_model(Gemma3ForConditionalGeneration)
