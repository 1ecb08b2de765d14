"""Detectors, matchers and language models of transformers, built tiny from their configs with random weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw

import vlmprune
from demos.tiny_vlm.scenes import make_scene
from tests.captioner.scripted import read_places
from vlmprune import VlmpruneError
from vlmprune.captioner import (
    AggregatorError,
    CausalLMAggregator,
    Detection,
    HFDetector,
    HFMatcher,
    SaliencyDetector,
    VisionModel,
    VLMDetector,
    VLMMatcher,
    read_json_boxes,
)
from vlmprune.captioner.divide import iou
from vlmprune.captioner.match import checked_scores
from vlmprune.captioner.prompts import BUNDLED
from vlmprune.captioner.sampling import SeededSampler

GREY = Image.new("RGB", (64, 48), "gray")


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    _, model, processor = vlmprune.load_tiny()
    return model, processor


# -- the default detector ------------------------------------------------------------------------------------------


def test_saliency_finds_what_stands_out() -> None:
    image = Image.new("RGB", (200, 120), (200, 210, 220))
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 30, 59, 69), fill=(200, 20, 20))
    draw.ellipse((130, 60, 169, 99), fill=(20, 20, 180))
    found = SaliencyDetector()(image)
    assert len(found) == 2
    for box in ((20, 30, 60, 70), (130, 60, 170, 100)):
        assert max(iou(one.box, box) for one in found) > 0.85
    assert all(0.3 < one.score <= 1 and one.label == "" for one in found)


@pytest.mark.parametrize("size", [(64, 48), (1, 1), (2, 300), (1000, 3)])
def test_saliency_of_nothing_is_nothing(size: tuple[int, int]) -> None:
    assert SaliencyDetector()(Image.new("RGB", size, "white")) == []


def test_saliency_survives_noise_and_large_images() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    assert len(SaliencyDetector()(noise)) <= 50
    big = Image.new("RGB", (3000, 2000), "white")
    ImageDraw.Draw(big).rectangle((300, 300, 899, 899), fill="red")
    (one,) = SaliencyDetector()(big)
    assert iou(one.box, (300, 300, 900, 900)) > 0.9


def test_saliency_finds_the_things_of_scenes() -> None:
    found = wanted = 0
    for seed in range(30):
        scene = make_scene(seed, "validation")
        boxes = [one.box for one in SaliencyDetector()(scene.image())]
        wanted += len(scene.things)
        found += sum(any(iou(box, thing.box) > 0.5 for box in boxes) for thing in scene.things)
    assert found / wanted > 0.8


# -- a detector of transformers ------------------------------------------------------------------------------------


def test_a_hugging_face_detector() -> None:
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=16, num_detection_tokens=5, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    model = transformers.YolosForObjectDetection(config).eval()
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    processor = YolosImageProcessorPil(size={"height": 32, "width": 32})
    found = HFDetector(model, processor)(GREY)
    assert len(found) == 5  # every query comes back: the captioner has its own threshold
    assert {one.label for one in found} <= {"cat", "dog"}
    assert all(0 <= one.score <= 1 for one in found)
    assert all(-64 <= one.box[0] <= 128 for one in found)  # in pixels of the image, not fractions


# -- the describing model as a detector ----------------------------------------------------------------------------


def test_boxes_in_json_answers() -> None:
    answer = (
        'Sure:\n```json\n[{"label": "dog", "bbox_2d": [0, 250, 500, 1000]}, {"box": [1, 2]}, 5, {"label": "x"}]\n```'
    )
    assert read_json_boxes(answer, (200, 100), 1000) == [Detection((0, 25, 100, 100), 1.0, "dog")]
    for nonsense in ("nothing here", "[1, 2", '{"box": [0, 0, 1, 1]}', '[{"box": [0, 0, true, 1]}]', "[]"):
        assert read_json_boxes(nonsense, (200, 100), 1000) == []


def test_the_bundled_model_says_where_things_are(small: tuple[Any, Any]) -> None:
    detector = VLMDetector(VisionModel(*small), BUNDLED, read_places)
    found = detector(make_scene(1, "validation").image())
    assert found
    assert all(one.label for one in found)


# -- matchers ------------------------------------------------------------------------------------------------------

SMALL_TEXT = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40,
    "max_position_embeddings": 16, "projection_dim": 8,
}  # fmt: skip
SMALL_VISION = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
    "patch_size": 16, "projection_dim": 8,
}  # fmt: skip


class Letters:
    """A processor that needs no files: letters become numbers, images 32 x 32 pixels."""

    def __call__(self, images: Any, text: list[str], padding: Any, **_: Any) -> Any:
        long = 16 if padding == "max_length" else max(map(len, text))
        ids = [([3 + ord(c) % 30 for c in one] + [2] * 16)[:long] for one in text]
        pixels = [np.asarray(one.resize((32, 32)), dtype=np.float32) / 255 for one in images]
        data = {"input_ids": torch.tensor(ids), "pixel_values": torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2)}
        return transformers.BatchFeature(data)


def matching_model(kind: str) -> Any:
    if kind == "clip":
        config = transformers.CLIPConfig(text_config={**SMALL_TEXT, "eos_token_id": 2}, vision_config=SMALL_VISION)
        return transformers.CLIPModel(config)
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(text_config=SMALL_TEXT, vision_config=SMALL_VISION))
    text = {**SMALL_TEXT, "encoder_hidden_size": 16, "bos_token_id": 1, "sep_token_id": 2, "pad_token_id": 0}
    return transformers.BlipForImageTextRetrieval(
        transformers.BlipConfig(text_config=text, vision_config=SMALL_VISION, image_text_hidden_size=8)
    )


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip"])
def test_hugging_face_matchers(kind: str) -> None:
    torch.manual_seed(1)
    matcher = HFMatcher(matching_model(kind).eval(), Letters(), batch_size=2)
    red = Image.new("RGB", (32, 32), "red")
    pairs = [(GREY, "a dog"), (red, "a dog"), (GREY, "a cat"), (red, "a cab"), (red, "a dog")]
    scores = checked_scores(matcher, pairs)
    assert len(scores) == 5
    assert scores[1] == pytest.approx(scores[4], abs=1e-5)  # a pair's score does not depend on its batch
    alone = [score for pair in pairs for score in matcher([pair])]
    assert scores == pytest.approx(alone, abs=1e-5)


def cosine_of(image: torch.Tensor, text: torch.Tensor) -> float:
    """Of two vectors, written out."""
    a, b = image.double().tolist(), text.double().tolist()
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5)


def by_parts(kind: str, model: Any, image: Image.Image, text: str) -> tuple[float, float]:
    """The cosine and the matching probability of one pair, from the model's encoders, projections and heads.

    BLIP's are those of its paper's retrieval model (arXiv 2201.12086): a unimodal text encoder for the cosine, the same
    encoder grounded in the image for the matching head, whose second logit is "match".
    """
    inputs = Letters()([image], [text], "max_length" if kind == "siglip" else True)
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with torch.no_grad():
        if kind == "blip":
            seen = model.vision_model(pixels).last_hidden_state
            alone = model.text_encoder(ids).last_hidden_state
            grounded = model.text_encoder(ids, encoder_hidden_states=seen).last_hidden_state
            no, yes = model.itm_head(grounded[0, 0]).tolist()
            cosine = cosine_of(model.vision_proj(seen[0, 0]), model.text_proj(alone[0, 0]))
            return cosine, math.exp(yes) / (math.exp(yes) + math.exp(no))
        seen, said = model.vision_model(pixels).pooler_output[0], model.text_model(ids).pooler_output[0]
        if kind == "clip":
            return cosine_of(model.visual_projection(seen), model.text_projection(said)), 0.0
        logit = model.logit_scale.exp().item() * cosine_of(seen, said) + model.logit_bias.item()
        return cosine_of(seen, said), 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("kind", ["clip", "siglip", "blip"])
def test_scores_of_matchers_are_those_of_their_papers(kind: str) -> None:
    """BLIP: (matching probability + cosine) / 2 (Patch Matters); SigLIP so with its sigmoid; CLIP 2.5 x cosine."""
    signs = set()
    for seed in range(4):
        torch.manual_seed(seed)
        model = matching_model(kind).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # the usual 0.02 leaves every probability at one half
                parameter.mul_(5)
            if kind == "siglip":
                model.logit_scale.fill_(1.0)
        pairs = [(GREY, "a dog"), (Image.new("RGB", (32, 32), "red"), "a cab"), (GREY, "zebra")]
        wanted = []
        for image, text in pairs:
            cosine, matching = by_parts(kind, model, image, text)
            signs.add(cosine > 0.05)
            found = max(0.0, cosine)
            wanted.append(min(1.0, 2.5 * found) if kind == "clip" else (matching + found) / 2)
        assert HFMatcher(model, Letters())(pairs) == pytest.approx(wanted, abs=1e-5)
    assert signs == {True, False}  # cosines that count and such that do not


def test_other_models_do_not_match(small: tuple[Any, Any]) -> None:
    with pytest.raises(VlmpruneError, match="'llava'"):
        HFMatcher(*small)


def test_the_describing_model_matches(small: tuple[Any, Any]) -> None:
    scene = make_scene(1, "validation")
    matcher = VLMMatcher(VisionModel(*small, batch_size=3), BUNDLED)
    pairs = [(scene.image(), f"a red {shape} at the top") for shape in ("circle", "star", "ring", "tile")]
    together = checked_scores(matcher, pairs)
    assert together == pytest.approx([score for pair in pairs for score in matcher([pair])], abs=1e-5)
    assert len(set(together)) > 1


@pytest.mark.parametrize("scores", [[0.5], [0.5, float("nan")], [0.5, 1.2], [-0.1, 0.5]])
def test_scores_that_are_none(scores: list[float]) -> None:
    with pytest.raises(VlmpruneError, match="The matcher gave"):
        checked_scores(lambda pairs: scores, [(GREY, "a"), (GREY, "b")])


# -- a causal language model ---------------------------------------------------------------------------------------


def test_a_causal_model_that_cannot_comply_is_an_honest_error(small: tuple[Any, Any]) -> None:
    model, processor = small
    tokenizer = processor.tokenizer
    assert tokenizer.chat_template is None or isinstance(tokenizer.chat_template, str)
    tokenizer = type(tokenizer).from_pretrained(vlmprune.tiny.WEIGHTS / "processor")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    # A vision-language model's own language model writes, here no JSON.
    writer = CausalLMAggregator(model, tokenizer, max_new_tokens=4, attempts=2)
    with pytest.raises(AggregatorError, match="no usable reply to 'group' in 2 attempts"):
        writer.group([["a red circle"], ["a blue circle"]])
    assert writer.calls == 2
    # Hot: how sure the bundled model is of its words is no matter here.
    replies = [
        writer.complete([{"role": "user", "content": "a red"}], task="group", temperature=20.0, seed=seed)
        for seed in (1, 1, 2, 3, 4)
    ]
    assert replies[0] == replies[1]
    assert len(set(replies)) > 1


def test_a_tokenizer_without_a_template(small: tuple[Any, Any]) -> None:
    class Plain:
        chat_template = None

    with pytest.raises(VlmpruneError, match="no chat template"):
        CausalLMAggregator(small[0], Plain())


# -- sampling ------------------------------------------------------------------------------------------------------


def test_the_sampler_draws_from_the_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 6)
    for heat in (0.5, 1.0):
        rows = 4000
        drawn = SeededSampler(range(rows), heat)(torch.zeros(rows, 1), logits.expand(rows, -1)).argmax(-1)
        fractions = torch.bincount(drawn, minlength=6) / rows
        assert torch.allclose(fractions, (logits[0] / heat).softmax(-1), atol=0.03)


def test_the_sampler_leaves_one_token_and_never_an_impossible_one() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, -5.0]])
    for seed in range(50):
        for heat in (1.0, 0.0):
            out = SeededSampler([seed, seed], heat)(torch.zeros(2, 1), logits)
            assert out.isfinite().sum(-1).tolist() == [1, 1]
            assert out.argmax(-1).tolist()[0] != 1
            assert out.argmax(-1).tolist()[1] == 2


def test_rows_do_not_depend_on_their_neighbours() -> None:
    logits = torch.randn(3, 9)
    alone = [SeededSampler([seed], 0.7)(torch.zeros(1, 1), logits[i : i + 1]) for i, seed in enumerate((5, 6, 7))]
    together = SeededSampler([5, 6, 7], 0.7)(torch.zeros(3, 1), logits)
    assert torch.equal(together, torch.cat(alone))
