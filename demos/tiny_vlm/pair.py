"""The two models and their processor, built from nothing: configs, start weights, tokenizer, export."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from .tower import init_tower, tower_config
from .vocabulary import CANVAS, GRID, IDS, PATCH

TEXT: dict[str, dict[str, int]] = {
    "large": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 6},
    "small": {
        "hidden_size": 24,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,  # longer keys than 24 / 2 would give
    },
}

# One user turn is "<bos> <image> question <ans>"; a model's turn ends in <eos>.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<ans>' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<ans>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words, single digits and single punctuation marks, lower case; the model's whole world is known words."""
    inner = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    # Words, single digits and single punctuation marks.
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[a-z]+|\d|[^\sa-z\d]"), "isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", IDS["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<ans>"],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_processor(canvas: int = CANVAS, patch: int = PATCH) -> LlavaProcessor:
    """The stock processor with a PIL image part: any image becomes a square of `canvas` pixels a side."""
    square = {"height": canvas, "width": canvas}
    image = LlavaImageProcessorPil(size=square, crop_size=square, do_center_crop=False, do_pad=False)
    return LlavaProcessor(
        image_processor=image,
        tokenizer=build_tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def text_config(sizes: Mapping[str, int]) -> LlamaConfig:
    """The text model of any pair over this vocabulary."""
    return LlamaConfig(
        vocab_size=64 * math.ceil(len(IDS) / 64),
        num_key_value_heads=sizes["num_attention_heads"],
        max_position_embeddings=2048,
        bos_token_id=IDS["<bos>"],
        eos_token_id=IDS["<eos>"],
        pad_token_id=IDS["<pad>"],
        tie_word_embeddings=True,
        **sizes,
    )


def greedy() -> GenerationConfig:
    """How every model of a pair generates."""
    return GenerationConfig(
        bos_token_id=IDS["<bos>"], eos_token_id=IDS["<eos>"], pad_token_id=IDS["<pad>"], do_sample=False
    )


def build_model(which: str, tower: Path | None = None) -> LlavaForConditionalGeneration:
    """A model with its start weights and, where given, the trained tower (frozen)."""
    config = LlavaConfig(
        vision_config=tower_config(),
        text_config=text_config(TEXT[which]),
        image_token_id=IDS["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    init_text(model)
    if tower is None:
        init_tower(model.model.vision_tower)
    else:
        model.model.vision_tower.load_state_dict(load_file(str(tower)))
    model.model.vision_tower.requires_grad_(False)
    model.generation_config = greedy()
    return model


def init_text(model: LlavaForConditionalGeneration) -> None:
    """Standard deviation 1/sqrt(fan-in); what the layers add to the residual stream starts small in a deep model."""
    layers = model.model.language_model.layers
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "vision_tower" not in name and p.ndim >= 2:
                p.normal_(0, 1 / math.sqrt(p.shape[1]))
        for layer in layers:
            for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
                part.weight.mul_(math.sqrt(2 / len(layers)))


def export(model: PreTrainedModel, folder: Path) -> None:
    """config.json, generation_config.json and model.safetensors (fp16) as from_pretrained reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"  # stored in half precision, computed with in full: CPUs are faster at it
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tensors = {k: v.detach().half().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def export_processor(folder: Path, canvas: int = CANVAS, patch: int = PATCH) -> None:
    """The processor as from_pretrained reads it."""
    build_processor(canvas, patch).save_pretrained(folder)
    json.loads((folder / "processor_config.json").read_text())
