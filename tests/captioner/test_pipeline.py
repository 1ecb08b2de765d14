"""The whole way from an image to a caption, on the bundled small model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlmprune
from demos.tiny_vlm.scenes import make_scene
from tests.captioner.scripted import read_places
from vlmprune import VlmpruneError
from vlmprune.captioner import (
    BUNDLED_CONFIG,
    CaptionConfig,
    Detection,
    PatchCaptioner,
    Prompts,
    VisionModel,
    WordAggregator,
)
from vlmprune.captioner.detect import VLMDetector
from vlmprune.captioner.pipeline import is_bundled
from vlmprune.captioner.prompts import BUNDLED
from vlmprune.tiny import known_words

SHORT = {**vars(BUNDLED_CONFIG), "max_new_tokens": 13}


@pytest.fixture(scope="module")
def small() -> tuple[Any, Any]:
    _, model, processor = vlmprune.load_tiny()
    return model, processor


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return make_scene(3, "validation").image()


def config(**changes: Any) -> CaptionConfig:
    return CaptionConfig(**{**SHORT, **changes})


def sure(pairs: Sequence[Any]) -> list[float]:
    return [0.9] * len(pairs)


def test_one_call(small: tuple[Any, Any], image: Image.Image) -> None:
    caption = vlmprune.PatchCaptioner(*small, config=config())(image)
    assert str(caption) == caption.text != ""
    assert [patch.name for patch in caption.patches] == ["top left", "top right", "bottom left", "bottom right"]
    assert all(len(patch.samples) == 3 for patch in caption.patches)
    assert {s.sample for s in caption.sentences if s.patch == "top left"} <= {0, 1, 2, None}
    assert all(sentence.reason for sentence in caption.sentences)
    for patch in caption.patches:
        said = " ".join(patch.samples)
        assert all(s.text in said for s in patch.sentences if s.sample is not None)
    final = [s for s in caption.sentences if s.kept]
    assert all(part.lower() in {s.text.lower() for s in final} for part in caption.text.rstrip(".").split(". "))


def test_the_record_is_json_and_complete(small: tuple[Any, Any], image: Image.Image) -> None:
    record = PatchCaptioner(*small, config=config())(image).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert {"text", "patches", "sentences", "cost"} <= record.keys()
    for sentence in record["sentences"]:
        assert {"text", "class", "score", "kept", "reason", "patch", "sample"} <= sentence.keys()
        assert sentence["class"] in ("similar", "contradictory", "unique", None)
    assert all(len(patch["box"]) == 4 for patch in record["patches"])
    assert set(record["cost"]["seconds"]) == {"detect", "describe", "match", "aggregate", "total"}
    assert record["cost"]["calls"]["describe"] == 4 * 3 + 1
    scored = [one for one in record["sentences"] if one["score"] is not None]
    assert 0 < record["cost"]["calls"]["match"] <= len(scored)  # equal sentences of a patch are scored once


def test_the_tree_holds_every_sentence_once(small: tuple[Any, Any], image: Image.Image) -> None:
    wide = [Detection((5, 5, 107, 50)), Detection((5, 60, 107, 107))]  # upper and lower pairs overlap
    caption = PatchCaptioner(*small, config=config(), detector=lambda _: wide)(image)

    def walk(node: Any) -> list[Any]:
        return [*node.sentences, *(s for child in node.children for s in walk(child))]

    assert sorted(s.number for s in walk(caption.tree)) == [s.number for s in caption.sentences]
    assert [child.name for child in caption.tree.children] == ["top left + top right", "bottom left + bottom right"]
    assert all(f"[{s.number}] {s.text}" in str(caption.tree) for s in caption.sentences)


def test_what_a_crop_says_does_not_depend_on_the_batch(small: tuple[Any, Any], image: Image.Image) -> None:
    described = [PatchCaptioner(*small, config=config(batch_size=size)).describe([image]) for size in (3, 16)]
    assert described[0] == described[1]
    assert len({patch.samples for patch in described[0][0].patches}) > 1


def test_an_image_is_described_alike_among_others(small: tuple[Any, Any], image: Image.Image) -> None:
    others = [make_scene(seed, "validation").image() for seed in (1, 2)]
    captioner = PatchCaptioner(*small, config=config())
    assert captioner.describe([others[0], image, others[1]])[1] == captioner.describe([image])[0]


def test_a_crop_says_what_it_says_alone(small: tuple[Any, Any], image: Image.Image) -> None:
    """Samples come back at their own crop: asked one by one with the same seeds, each crop says the same."""
    captioner = PatchCaptioner(*small, config=config())
    seeds = [[10 * p + k for k in range(3)] for p in range(4)]
    views = [captioner.view(image, patch.box) for patch in captioner.describe([image])[0].patches]
    options: dict[str, Any] = {"temperature": 0.7, "max_new_tokens": 6}
    together = captioner.vision.describe(views, BUNDLED.describe, seeds=seeds, **options)
    alone = [
        captioner.vision.describe([view], BUNDLED.describe, seeds=[own], **options)[0]
        for view, own in zip(views, seeds, strict=True)
    ]
    assert together == alone
    singly = [[captioner.vision.describe([v], BUNDLED.describe, seeds=[[s]], **options)[0][0] for s in own]
              for v, own in zip(views, seeds, strict=True)]  # fmt: skip
    assert together == singly


def test_seeds(small: tuple[Any, Any], image: Image.Image) -> None:
    one, same, other = (PatchCaptioner(*small, config=config(), seed=seed).describe([image])[0] for seed in (1, 1, 2))
    assert one == same
    assert [patch.samples for patch in one.patches] != [patch.samples for patch in other.patches]
    assert len({text for patch in one.patches for text in patch.samples}) > 4


def test_pruning_inside(small: tuple[Any, Any], image: Image.Image) -> None:
    full = PatchCaptioner(*small, config=config(filter=False))(image)
    # Four crops and the image: the samples of a crop share one encoding and one prefill.
    assert full.cost.visual_tokens == 196 * 5
    assert full.cost.images_encoded == 5
    assert full.cost.prefill_flops is None
    with vlmprune.wrap(small[0], "random", keep=0.25, processor=small[1]) as pruned:
        captioner = PatchCaptioner(pruned, config=config(filter=False))
        cost = captioner(image).cost
        assert cost.visual_tokens == 49 * 5
        # The model itself is wrapped, so it counts the same when that is passed.
        assert PatchCaptioner(*small, config=config(filter=False))(image).cost.visual_tokens == 49 * 5
    with vlmprune.wrap(small[0], "none", processor=small[1]) as handle:
        unpruned = PatchCaptioner(handle, config=config(filter=False))(image)
    assert unpruned.text == full.text
    assert unpruned.cost.prefill_flops is not None
    assert cost.prefill_flops is not None
    assert cost.prefill_flops < 0.5 * unpruned.cost.prefill_flops
    with pytest.raises(VlmpruneError, match="inactive"):
        captioner(image)


def test_every_method_that_needs_no_guide_prunes_inside(small: tuple[Any, Any], image: Image.Image) -> None:
    for method in (vlmprune.FastV(keep=0.25, layer=1), vlmprune.Uniform(keep=0.25), vlmprune.Downsample(keep=0.25)):
        with vlmprune.wrap(small[0], method, processor=small[1]) as pruned:
            caption = PatchCaptioner(pruned, config=config(max_new_tokens=6, samples=2), matcher=sure)(image)
        assert caption.cost.layer_avg_tokens < 196 * 5


def test_a_guide_prunes_inside(image: Image.Image) -> None:
    large, guide, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, vlmprune.SGL(guide=guide, keep=0.18), processor=processor) as pruned:
        caption = PatchCaptioner(pruned, config=config(max_new_tokens=6, samples=2, filter=False))(image)
    assert all(len(patch.samples) == 2 for patch in caption.patches)
    # 35 of 196 tokens from layer 1 of 6 on: (196 + 5 * 35) / 6 = 62.
    assert caption.cost.layer_avg_tokens == pytest.approx(5 * (196 + 5 * 35) / 6)


def test_labels_give_a_semantic_patch(small: tuple[Any, Any], image: Image.Image) -> None:
    class Names(WordAggregator):
        def objects(self, caption: str, classes: Sequence[str]) -> list[str]:
            return ["ring"]

    found = [Detection((0, 0, 30, 40), 0.9, "ring"), Detection((60, 60, 90, 90), 0.8, "star")]
    options: dict[str, Any] = {"config": config(max_new_tokens=6), "detector": lambda _: found, "matcher": sure}
    caption = PatchCaptioner(*small, aggregator=Names(), **options)(image)
    assert [(patch.name, patch.box) for patch in caption.patches][4:] == [("semantic", (0, 0, 30, 40))]
    assert caption.cost.calls["describe"] == 5 * 3 + 2
    options["config"] = config(max_new_tokens=6, semantic=False)
    caption = PatchCaptioner(*small, aggregator=Names(), **options)(image)
    assert len(caption.patches) == 4
    assert "switched off" in caption.notes[0]


def test_the_models_own_answers_as_detections(small: tuple[Any, Any], image: Image.Image) -> None:
    detector = VLMDetector(VisionModel(*small), BUNDLED, read_places)
    caption = PatchCaptioner(*small, detector=detector, config=config(max_new_tokens=6), matcher=sure)(image)
    assert len(caption.patches) in (4, 5)


def test_views(small: tuple[Any, Any], image: Image.Image) -> None:
    box = (10.5, 20, 50, 60)
    crop = PatchCaptioner(*small, config=config(view="crop")).view(image, box)
    place = PatchCaptioner(*small, config=config(view="in_place")).view(image, box)
    assert crop.size == (40, 40)
    assert place.size == image.size
    assert np.array_equal(np.asarray(place)[20:60, 10:50], np.asarray(crop))
    outside = np.delete(
        np.asarray(place).reshape(-1, 3), [y * 112 + x for y in range(20, 60) for x in range(10, 50)], 0
    )
    assert len(np.unique(outside, axis=0)) == 1


def test_in_place_hides_what_the_patch_cuts(small: tuple[Any, Any]) -> None:
    image = Image.new("RGB", (100, 100), "white")
    image.paste("red", (40, 10, 70, 30))  # cut by a patch that ends at 50
    image.paste("blue", (10, 10, 30, 30))
    objects = [(40, 10, 70, 30), (10, 10, 30, 30)]
    view = PatchCaptioner(*small, config=config(view="in_place")).view(image, (0, 0, 50, 50), objects)
    assert {colour for _, colour in view.getcolors()} == {(255, 255, 255), (0, 0, 255)}
    whole = PatchCaptioner(*small, config=config(view="in_place")).view(image, (0, 0, 100, 100), objects)
    assert np.array_equal(np.asarray(whole), np.asarray(image))


def test_overlay(small: tuple[Any, Any], image: Image.Image) -> None:
    caption = PatchCaptioner(*small, config=config(max_new_tokens=4), matcher=sure)(image)
    drawn = caption.overlay()
    assert drawn.size == image.size
    assert not np.array_equal(np.asarray(drawn), np.asarray(image))
    bare = type(caption)(caption.text, (), caption.patches, caption.tree, caption.cost)
    with pytest.raises(VlmpruneError, match="holds no image"):
        bare.overlay()
    assert bare.overlay(Image.new("L", (40, 40))).size == (40, 40)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (640, 480)])
def test_odd_images(small: tuple[Any, Any], size: tuple[int, int]) -> None:
    caption = PatchCaptioner(*small, config=config(max_new_tokens=4, samples=1), matcher=sure)(Image.new("RGB", size))
    assert len(caption.patches) == 4


def test_the_bundled_pair_gets_its_own_words(small: tuple[Any, Any]) -> None:
    assert is_bundled(small[1])
    assert not is_bundled(object())
    assert PatchCaptioner(*small).config == BUNDLED_CONFIG
    known = known_words()
    for text in (BUNDLED.describe, BUNDLED.short, BUNDLED.verify.replace("{sentence}", "a red ring"), BUNDLED.boxes):
        assert set(text.lower().replace(".", " ").replace("?", " ").replace(":", " ").split()) <= known


def test_wrong_input_is_said(small: tuple[Any, Any], image: Image.Image) -> None:
    model, processor = small
    with pytest.raises(VlmpruneError, match="needs the model's processor"):
        PatchCaptioner(model)
    with pytest.raises(VlmpruneError, match="'nothing'"):
        PatchCaptioner(model, processor)("nothing")  # type: ignore[arg-type]
    with pytest.raises(VlmpruneError, match=r"seed must be an int, got 1\.5"):
        PatchCaptioner(model, processor, seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(VlmpruneError, match="config must be"):
        PatchCaptioner(model, processor, config={"samples": 2})  # type: ignore[arg-type]
    with pytest.raises(VlmpruneError):
        PatchCaptioner("a model", processor)
    with pytest.raises(VlmpruneError, match="The matcher gave 0 scores"):
        PatchCaptioner(model, processor, config=config(max_new_tokens=12), matcher=lambda pairs: [])(image)


@pytest.mark.parametrize(
    "bad",
    [
        {"samples": 0},
        {"samples": True},
        {"batch_size": 1.5},
        {"keep_score": 1.1},
        {"merge_iou": float("nan")},
        {"temperature": -1},
        {"temperature": float("inf")},
        {"view": "fisheye"},
        {"prompts": "Describe."},
    ],
)
def test_settings_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(VlmpruneError, match=next(iter(bad))):
        CaptionConfig(**bad)


@pytest.mark.parametrize("bad", [{"describe": " "}, {"verify": "Is it true?"}, {"yes": ""}])
def test_prompts_that_cannot_work(bad: dict[str, Any]) -> None:
    with pytest.raises(VlmpruneError, match=next(iter(bad))):
        Prompts(**bad)


def test_answers_without_a_token(small: tuple[Any, Any], image: Image.Image) -> None:
    prompts = Prompts(**{**vars(BUNDLED), "yes": "affirmative"})
    with pytest.raises(VlmpruneError, match="'affirmative'"):
        PatchCaptioner(*small, config=config(prompts=prompts, max_new_tokens=12))(image)
