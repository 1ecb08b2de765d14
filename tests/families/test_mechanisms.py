"""Every image-text type of transformers either wraps or says by which mechanism its image gets in."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, EvollaForProteinText2Text
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import vlmprune
from tests.support.generic import MAKERS, build_generic
from tests.support.grid import few
from vlmprune.families import list_families

IMAGE_IDS = ("image_token_id", "image_token_index")
CROSS = "attends to the image in cross-attention layers"
ENCODER = "is an encoder-decoder, whose image goes into the encoder"
# Types that need another mechanism, and what they say of it.
REFUSED = {
    "blip": CROSS,
    "diffusion_gemma": "generates by diffusion",
    "evolla": "attends to a protein",
    "florence2": ENCODER,
    "git": "puts the image in front of the text by itself",
    "idefics": f"{CROSS} between its decoder layers",
    "inkling2": "has convolutions over neighbouring tokens inside its attention layers",
    "inkling2_loop": "has convolutions over neighbouring tokens inside its attention layers",
    "inkling_mm_model": "has convolutions over neighbouring tokens inside its attention layers",
    "instructblipvideo": "takes videos, not images",
    "glm5_next": "selects keys by groups of 16 neighbouring tokens",
    "kosmos-2": "marks the image's rows by a mask",
    "kosmos-2.5": "marks the image's rows by a mask",
    "mistral4": "takes no image",
    "pi0": "predicts a robot's actions",
    "pix2struct": ENCODER,
    "pp_formulanet": ENCODER,
    "t5gemma2": ENCODER,
    "udop": ENCODER,
    "unlimited_ocr": "has layers of kind 'reference_sliding_attention', which keep the prompt's keys for ever",
    "vision-encoder-decoder": ENCODER,
}
# Default configs that no model can be built of: what they leave out.
UNBUILDABLE = {
    "chameleon": "the vocabulary of the images' codes",
    "deepseek_ocr2": "the sizes of the tower",
    "emu3": "the vocabulary of the images' codes",
    "gemma3n": "its tower is one of timm, which is not installed",
    "hunyuan_vl": "the base of the rotary embedding",
    "perception_lm": "its tower is one of timm, which is not installed",
    "qwen4_exp": "the sizes of the indexer",
}


def on_meta(model_type: str):
    """A model of the default config, of full size, without weights; its image token set, which checkpoints have."""
    config = MAKERS[model_type]() if model_type in MAKERS else AutoConfig.for_model(model_type)
    for name in IMAGE_IDS:
        if hasattr(config, name) and getattr(config, name) is None:
            setattr(config, name, 9)
    if model_type == "diffusion_gemma":
        text = config.text_config
        text.num_experts, text.top_k_experts, text.moe_intermediate_size = 4, 2, 32
    with torch.device("meta"):
        if model_type == "evolla":
            return EvollaForProteinText2Text(config)
        return AutoModelForImageTextToText.from_config(config)


def test_the_lists_name_types_that_exist():
    names = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    assert set(REFUSED) | set(UNBUILDABLE) <= names
    assert not set(REFUSED) & set(list_families())


@pytest.mark.parametrize("model_type", few(list(REFUSED), 4))
def test_the_mechanism_is_named(model_type):
    with pytest.raises(vlmprune.UnsupportedModelError, match=REFUSED[model_type]) as raised:
        vlmprune.wrap(on_meta(model_type), "uniform")
    said = str(raised.value).replace("vlmprune.list_families()", "")
    assert said.count(".") == 1 + model_type.count(".")  # one sentence


@pytest.mark.parametrize(
    "model_type", sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(list_families()) - set(REFUSED))
)
def test_other_types_wrap_or_say_why(model_type):
    """Those whose conformance is tested elsewhere are left out."""
    if model_type in UNBUILDABLE and model_type not in MAKERS:
        with pytest.raises((TypeError, AttributeError, ImportError)):
            on_meta(model_type)
        return
    model, why = on_meta(model_type), "cannot be pruned"
    try:
        vlmprune.wrap(model, "uniform").unwrap()
    except vlmprune.UnsupportedModelError as error:
        why = str(error)
    assert "cannot be pruned" in why


def test_rows_are_not_dropped_among_layers_that_share_a_selection():
    """Layers 2 and 3 of Hy4 attend to the keys that layer 1 has selected."""
    model = on_meta("hy_v4_vl")
    wanted = r"before layer 2, which attends to the keys that layer 1 has selected .* use layer=1\."
    with pytest.raises(vlmprune.UnsupportedModelError, match=wanted):
        vlmprune.wrap(model, "uniform", layer=2)


def test_a_model_without_a_head_says_so():
    with pytest.raises(vlmprune.UnsupportedModelError, match="has no language-model head"):
        vlmprune.wrap(build_generic("aya_vision").model, "uniform")


def test_an_inner_encoder_decoder_is_refused():
    """BLIP-2 with T5 instead of OPT."""
    config = AutoConfig.for_model("blip-2", text_config={"model_type": "t5"}, image_token_index=9)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(vlmprune.UnsupportedModelError, match=ENCODER):
        vlmprune.wrap(model, "uniform")
