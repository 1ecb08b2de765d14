"""Videos are not supported yet: one and the same sentence wherever one comes in, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vlmprune
from tests.support.running import shared
from tests.support.tiny_families import IMAGE, VIDEO, build, make_inputs
from vlmprune.apps.demo.engine import attention_maps

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
SENTENCE = "The prompt has a video, which is not supported yet; ask about its frames as a list of images."
FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def video(family: str, *, image: bool = False) -> dict[str, Any]:
    """A prompt with a video of two (Qwen: four) frames, alone or behind an image."""
    inputs: dict[str, Any] = {}
    before: list[int] = []
    if image:
        inputs = dict(make_inputs(shared(family), text_lengths=(4,), images=(1,)))
        before = inputs["input_ids"][0].tolist()
    if family == "llava_onevision":
        # 3 x 3 patches a frame, pooled to 2 x 2, and one newline for the whole video.
        ids = [*before, 1, 20, *[VIDEO] * 9, 30]
        inputs["pixel_values_videos"] = torch.randn(1, 2, 3, 12, 12)
    else:
        between = [25] if family == "qwen3_vl" else []  # a time stamp stands before every frame there
        ids = [*before, 1, 20, *[VIDEO] * 4, *between, *[VIDEO] * 4, 30]
        inputs["pixel_values_videos"] = torch.randn(32, 96)
        inputs["video_grid_thw"] = torch.tensor([[2, 4, 4]])
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if family != "llava_onevision":
        kinds = (inputs["input_ids"] == IMAGE).long() + 2 * (inputs["input_ids"] == VIDEO).long()
        inputs["mm_token_type_ids"] = kinds
    return inputs


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(vlmprune.VlmpruneError) as caught:
        call()
    assert str(caught.value) == SENTENCE


def methods(family: str) -> dict[str, Any]:
    guide = build(family, seed=1, layers=3)
    made: dict[str, Any] = {name: name for name in vlmprune.list_methods() if name != "sgl"}
    if family != "qwen2_vl":
        made = {name: name for name in ("none", "random", "fastv", "var")}
    else:
        for name in ("scope", "visionzip", "prumerge"):  # these families are refused when they are wrapped
            made.pop(name)
    return made | {
        "keep=1.0": vlmprune.Random(keep=1.0),
        "sgl": vlmprune.SGL(guide, keep=0.3),
        "sgl, exit": vlmprune.SGL(guide, keep=0.3, exit_at=0.0),
        "list": [vlmprune.Random(), vlmprune.VAR()],
    }


@pytest.mark.parametrize("image", [False, True], ids=["alone", "beside an image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method(family, image):
    model = build(family)
    inputs = video(family, image=image)
    ran: list[str] = []
    with torch.no_grad():
        model(**inputs)  # a prompt that the plain model takes
    for part in (model.model.language_model, model.model.get_input_embeddings()):
        part.register_forward_pre_hook(lambda module, args: ran.append(type(module).__name__))
    tower = model.model.visual if hasattr(model.model, "visual") else model.model.vision_tower
    tower.register_forward_pre_hook(lambda module, args: ran.append("tower"))
    for method in methods(family).values():
        with vlmprune.wrap(model, method) as pruned:
            refused(lambda: model(**inputs))
            refused(lambda: model(inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}))
            refused(lambda: model.model(**inputs))
            refused(lambda: model.generate(**inputs, max_new_tokens=2))
            refused(lambda p=pruned: p.generate(**inputs, max_new_tokens=2))
            assert not ran
            with pruned.off(), torch.no_grad():
                model(**inputs)
            ran.clear()
            model(**make_inputs(model, text_lengths=(5,), images=(1,)))
            model(**make_inputs(model, text_lengths=(5,), images=(0,)))
            ran.clear()
    refused(lambda: vlmprune.find_sinks(model, **inputs))
    refused(lambda: attention_maps(model, inputs))
    assert not ran
    with torch.no_grad():
        model(**inputs)


@pytest.mark.parametrize("method", ["none", "random", "var"])
def test_a_video_that_comes_as_features(method):
    """As `generate` hands it to its first forward."""
    model = build("qwen2_vl")
    inputs = video("qwen2_vl")
    with torch.no_grad():
        plain = model(**inputs).logits
        features = model.get_video_features(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"])
    assert isinstance(features, BaseModelOutputWithPooling)
    given = {**inputs, "mm_encoder_outputs": {"video": features}}
    with vlmprune.wrap(model, method):
        refused(lambda: model(**given))
    with torch.no_grad():
        assert torch.equal(model(**given).logits, plain)


def test_a_video_in_a_later_turn_and_for_the_guide():
    model, guide = build("qwen2_vl"), build("qwen2_vl", seed=1, layers=3)
    inputs = make_inputs(model, text_lengths=(5,), images=(1,))
    clip = video("qwen2_vl")
    with vlmprune.wrap(model, "random", keep=0.5), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        refused(lambda: model(**{**clip, "attention_mask": None}, past_key_values=cache))
    with vlmprune.wrap(model, vlmprune.SGL(guide, keep=0.5)):
        refused(lambda: model.generate(**inputs, guide_inputs=clip, max_new_tokens=2))


def test_ask():
    large, small, processor = vlmprune.load_tiny()
    for method in ("none", "fastv", vlmprune.SGL(small)):
        with vlmprune.wrap(large, method, processor=processor) as pruned:
            for path in ("clip.mp4", "a/CLIP.MOV", ["one.webm"]):
                refused(lambda p=path: pruned.ask(p, "What happens?"))
            for name in ("video", "videos", "frames"):
                refused(lambda n=name: pruned.ask(None, "What happens?", **{n: 8}))
