"""What the language models of published checkpoints are, as far as it changes how a pruned prompt runs.

Tiny models of the tests must keep these facts, shrunk: a window that a tiny family leaves out hides every fault of
windows. `tests/families/test_published.py` compares. What is not known from a source is None and is not compared; tied
embeddings are left out, since the tiny models untie them and no pruned row sees the head's weights otherwise.

Sources, by `source`: "class" is the default of transformers' config classes (5.24), whose docstrings name the
checkpoint, with rotary sections as the model's code reads them where a config has none; else what is said there.
"""

from __future__ import annotations

from dataclasses import dataclass

CLASS = "class"
GLM = "class; half of a head rotated in THUDM/GLM-4.1V-9B-Thinking, config.json"
STEP = "stepfun-ai/Step-3.5-Flash, config.json, as converters of it read it: layer_types, partial_rotary_factors"
NO_WINDOW = "its text model is Mistral-7B-Instruct-v0.2, whose model card says: no sliding-window attention"


@dataclass(frozen=True)
class Published:
    """One checkpoint.

    `layers`: the first period of its layers' kinds: F full attention, S sliding window, C chunks, I keys chosen by an
    indexer, R recurrent, X cross attention. `window`: tokens that an S, C or I layer sees. `rope`: kinds of rotary
    embedding, of all layers. `axes`: of positions. `partial`: whether some layers rotate a part of a head only.
    `grouped`: fewer heads of keys than of queries. `experts`: how many, and how many a token uses. `dense`: whether
    layers without experts are among those with. `bias`: of queries. `capped`: logits by a tanh. `shared_kv`: layers
    that use the keys of earlier ones.
    """

    checkpoint: str
    layers: str | None
    window: int | None = None
    rope: str | None = "default"
    axes: int = 1
    partial: bool | None = False
    grouped: bool = False
    experts: tuple[int, int] | None = None
    dense: bool | None = None
    bias: bool | None = False
    capped: bool | None = False
    shared_kv: bool = False
    source: str = CLASS


def _glm(checkpoint: str) -> Published:
    return Published(checkpoint, "F", axes=3, partial=True, grouped=True, bias=True, source=GLM)


def _qwen3_5(checkpoint: str, experts: tuple[int, int] | None = None) -> Published:
    return Published(checkpoint, "RRRF", axes=3, partial=True, grouped=True, experts=experts)


# Of transformers.MistralConfig and Mistral-7B-v0.1: what any LLaVA on such a Mistral has, Idefics2's text model too.
MISTRAL = Published("mistralai/Mistral-7B-v0.1", "S", 4096, grouped=True)

PUBLISHED: dict[str, Published] = {
    "apertus1p5": Published("swiss-ai/Apertus-v1.5-8B", "F", rope="llama3"),
    "aria": Published("rhymes-ai/Aria", "F", experts=(8, 2)),
    "aya_vision": Published("CohereForAI/aya-vision-8b", "SSSF", 4096),
    "blip-2": Published("Salesforce/blip2-opt-2.7b", "F", rope=None, bias=None),
    "chameleon": Published("facebook/chameleon-7b", "F"),
    "cohere2_vision": Published("CohereLabs/command-a-vision-07-2025", "SSSF", 4096),
    "cohere_compass": Published(
        "CohereLabs/North-Micro-Vision-Instruct", "SSSF", 4096, rope=None, axes=3,
        source="class: its sliding_window_pattern of 4, with a rotary embedding for each kind of layer",
    ),
    "cosmos3_edge": Published("nvidia/Cosmos3-Edge", "F", axes=3, grouped=True),
    "cosmos3_omni": Published("nvidia/Cosmos3-Nano", "F", axes=3),
    "deepseek_ocr2": Published(
        "deepseek-community/DeepSeek-OCR-2", "F", experts=(64, 6),
        source="class; DeepSeek-OCR's paper (arXiv 2510.18234): 6 of 64 routed experts, 2 shared ones",
    ),
    "deepseek_vl": Published("deepseek-community/deepseek-vl-1.3b-chat", "F"),
    "deepseek_vl_hybrid": Published("deepseek-community/deepseek-vl-7b-chat", "F"),
    "dots3_note": Published(
        "dots-studio/dots3-note-prev", "IISSSISSSI", 512, partial=True, experts=(256, 8), dense=True
    ),
    "emu3": Published("Emu3-community/Emu3-Chat-hf", "F", grouped=True),
    "ernie4_5_vl_moe": Published(
        "baidu/ERNIE-4.5-VL-28B-A3B-PT", "F", axes=3, grouped=True, experts=(64, 6), dense=True
    ),
    "exaone4_5": Published("LGAI-EXAONE/EXAONE-4.5-33B", "SSSF", 4096),
    "fast_vlm": Published("KamilaMila/FastVLM-7B", "F", grouped=True, bias=True),
    "fuyu": Published("adept/fuyu-8b", "F", partial=True, bias=True),
    "gemma3": Published("google/gemma-3-4b-it", "SSSSSF", 4096, grouped=True),
    "gemma3n": Published("google/gemma-3n-E4B", "SSSSF", 512, grouped=True, capped=True, shared_kv=True),
    "gemma4": Published(
        "google/gemma-4-e2b-it", "SSSSSF", 512, rope="default+proportional", partial=True, grouped=True, capped=None
    ),
    "gemma4_unified": Published(
        "google/gemma-4-12B-it", "SSSSSF", 1024, rope="default+proportional", partial=True, grouped=True, capped=None
    ),
    "glm46v": _glm("zai-org/GLM-4.1V-9B-Thinking"),
    "glm4v": _glm("zai-org/GLM-4.1V-9B-Thinking"),
    "glm4v_moe": Published(
        "zai-org/GLM-4.5V", "F", axes=3, partial=True, grouped=True, experts=(128, 8), dense=True, bias=True
    ),
    "glm_ocr": Published("zai-org/GLM-OCR", "F", axes=3, grouped=True),
    "glmga": _glm("zai-org/GLM-4.1V-9B-Thinking"),
    "got_ocr2": Published("stepfun-ai/GOT-OCR-2.0-hf", "F", bias=True),
    "granite4_vision": Published("ibm-granite/granite-4.0-3b-vision", "F"),
    "granite_docling": Published("ibm-granite/granite-for-docling-500m", "F", grouped=True),
    "hunyuan_vl": Published(
        "tencent/HunyuanOCR", "F", rope="dynamic", axes=4, grouped=True,
        source="its rope_scaling: xdrope (dynamic in transformers), xdrope_section [16, 16, 16, 16], alpha 1000",
    ),
    "hy_v4_vl": Published("tencent/Hy4", "I", 2048, axes=3, experts=(256, 8), dense=True),
    "hyperclovax_vision_v2": Published("naver-hyperclovax/HyperCLOVAX-SEED-Think-32B", "F"),
    "idefics2": Published("HuggingFaceM4/idefics2-8b", "S", 4096, grouped=True),
    "idefics3": Published("HuggingFaceM4/Idefics3-8B-Llama3", "F", rope=None),
    "instructblip": Published("Salesforce/instructblip-flan-t5-xl", "F", rope=None, bias=None),
    "internvl": Published("OpenGVLab/InternVL3-1B-hf", "F", rope=None, bias=True),
    "janus": Published("deepseek-community/Janus-Pro-1B", "F"),
    "kimi_k25": Published("moonshotai/Kimi-K2.6", "F", rope=None, experts=(256, 8), dense=True),
    "lfm2_vl": Published(
        "LiquidAI/LFM2-VL-1.6B", "RRFRRFRRFRFRFRFR", grouped=True,
        source="attention in layers 2, 5, 8, 10, 12 and 14 of LiquidAI/LFM2-1.2B, its language model",
    ),
    "lfm3_vl": Published("LiquidAI/LFM3-VL-2B", "RRFRSRFRSR", 256, rope=None, partial=True, grouped=True),
    "lighton_ocr": Published("lightonai/LightOnOCR-1B-1025", "F", grouped=True),
    "llama4": Published("meta-llama/Llama-4-Scout-17B-16E", "CCCF", 8192, grouped=True, experts=(16, 1), rope=None),
    "llava": Published("llava-hf/llava-1.5-7b-hf", "F"),
    "llava_next": Published("llava-hf/llava-v1.6-mistral-7b-hf", "F", grouped=True, source=NO_WINDOW),
    "llava_next_video": Published("llava-hf/LLaVA-NeXT-Video-7B-hf", "F"),
    "llava_onevision": Published("llava-hf/llava-onevision-qwen2-7b-ov-hf", "F", bias=True),
    "minicpm_ocr": _qwen3_5("openbmb/MiniCPM-OCR-1.0"),
    "minicpmv4_6": _qwen3_5("openbmb/MiniCPM-V-4.6"),
    "minicpmv4_7": _qwen3_5("openbmb/MiniCPM-V-4.7-1B"),
    "minimax_m3_vl": Published("MiniMaxAI/MiniMax-M3", None, partial=None, grouped=True, experts=(128, 4)),
    "mistral3": Published("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "F", grouped=True),
    "mistral_large4": Published(
        "mistralai/Mistral-Large-4-1T-A52B", "I", 2048, rope="yarn", experts=(128, 4), dense=True, capped=True
    ),
    "mllama": Published("meta-llama/Llama-3.2-11B-Vision", "FX", rope=None, grouped=True),
    "molmo2": Published("allenai/Molmo2-8B", "F", grouped=True),
    "muse_glimmer": Published("meta-models/Muse-Glimmer-30B", "SSSF", 2048, grouped=True, capped=True),
    "nemotron_h_omni": Published(
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16", None, rope=None, grouped=True, experts=(8, 2)
    ),
    "ovis2": Published("thisisiron/Ovis2-1B-hf", "F", bias=True),
    "paddleocr_vl": Published("PaddlePaddle/PaddleOCR-VL", "F", axes=3, grouped=True),
    "paligemma": Published("google/paligemma-3b-pt-224", "F", grouped=True),
    "perception_lm": Published("facebook/Perception-LM-1B", "F", rope=None),
    "pp_chart2table": Published("PaddlePaddle/PP-Chart2Table_safetensors", "F", bias=True),
    "qianfan_ocr": Published("baidu/Qianfan-OCR", "F"),
    "qwen2_5_omni_thinker": Published("Qwen/Qwen2.5-Omni-7B", "F", axes=3, grouped=True, bias=True),
    "qwen2_5_vl": Published("Qwen/Qwen2.5-VL-7B-Instruct", "F", axes=3, grouped=True, bias=True),
    "qwen2_vl": Published("Qwen/Qwen2-VL-7B-Instruct", "F", axes=3, grouped=True, bias=True),
    "qwen3_5": _qwen3_5("Qwen/Qwen3.5-27B"),
    "qwen3_5_moe": _qwen3_5("Qwen/Qwen3.5-35B-A3B", (256, 8)),
    "qwen3_omni_moe_thinker": Published(
        "Qwen/Qwen3-Omni-30B-A3B-Instruct", "F", axes=3, grouped=True, experts=(128, 8)
    ),
    "qwen3_vl": Published("Qwen/Qwen3-VL-4B-Instruct", "F", axes=3),
    "qwen3_vl_moe": Published("Qwen/Qwen3-VL-30B-A3B-Instruct", "F", axes=3, experts=(60, 4)),
    "shieldgemma2": Published("google/shieldgemma-2-4b-it", "SSSSSF", 4096, grouped=True),
    "smolvlm": Published("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "F"),
    "step3p7": Published(
        "stepfun-ai/Step-3.7-Flash", "FSSS", 512, rope=None, partial=True, grouped=True, experts=(288, 8), dense=True,
        source=STEP,
    ),
    "video_llama_3": Published("lkhl/VideoLLaMA3-2B-Image-HF", "F", bias=True),
    "video_llava": Published("LanguageBind/Video-LLaVA-7B-hf", "F"),
    "vipllava": Published("llava-hf/vip-llava-7b-hf", "F"),
}  # fmt: skip
