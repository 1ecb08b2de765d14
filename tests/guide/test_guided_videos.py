"""SGL on prompts with videos: samples that exit take their own rows, and a guide may see fewer and smaller frames."""

from __future__ import annotations

import pytest
import torch

import vlmprune
from tests.guide.test_inputs import assert_near
from tests.support.grid import either, grid, only_full
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.videos import VIDEO_FAMILIES, hint, language_layers, make_video_inputs, video_model, visual
from vlmprune.families import family_of
from vlmprune.guide.inputs import take_samples
from vlmprune.guide.runner import Guide
from vlmprune.guide.vision import VisionMemo

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
AS_IMAGES = ("smolvlm", "internvl")


@grid(
    family=either(["qwen2_5_vl", "llava_onevision", "smolvlm", VIDEO_FAMILIES[-1]], VIDEO_FAMILIES),
    samples=either([("iv", "i", "vv")], [("iv", "i", "vv"), ("v", "", "iv"), ("vi", "v", "i")]),
)
def test_each_sample_takes_its_own_images_and_videos(family, samples):
    if family == "glm4v":
        samples = ("v", "", "vv")
    if family == "smolvlm" and "" in samples:  # whose pixels have a row of images for each sample
        samples = ("v", "i", "iv")
    model, words = video_model(family), (6, 9, 7)
    inputs = make_video_inputs(model, samples, words)
    if family in AS_IMAGES:
        inputs["video_frames"] = hint(samples)
    layouts, memo = Guide(model).rank(dict(inputs)).layouts, VisionMemo()
    frames = inputs.pop("video_frames", None)
    tower = family_of(model).vision_tower(model)
    with torch.no_grad():
        with memo.recording(tower):
            batch = model(**inputs).logits[:, -1]
        for some in ([0], [1], [2], [0, 2], [1, 2]):
            given = dict(inputs) if frames is None else {**inputs, "video_frames": frames}
            taken, rows = take_samples(family_of(model), model.config, given, some, layouts)
            if frames is not None and any(samples[i] for i in some):
                assert taken.pop("video_frames") == [frames[i] for i in some]
            assert_near(model(**taken).logits[:, -1], batch[some])
            with memo.replaying(tower, rows):
                assert_near(model(**taken).logits[:, -1], batch[some])


def test_a_tower_is_not_replayed_for_other_pixels_of_the_same_shape():
    """The image of the sample that left and the video of the one that stays have as many patches."""
    model = video_model("qwen2_vl")
    inputs = make_video_inputs(model, ("i", "v"), (5, 7))
    inputs["pixel_values"] = inputs["pixel_values"][: len(inputs["pixel_values_videos"])]
    memo, tower = VisionMemo(), family_of(model).vision_tower(model)
    grids = inputs["video_grid_thw"]
    with torch.no_grad():
        with memo.recording(tower):
            first = tower(inputs["pixel_values"], grid_thw=grids).pooler_output
            second = tower(inputs["pixel_values_videos"], grid_thw=grids).pooler_output
        with memo.replaying(tower, [torch.arange(len(inputs["pixel_values_videos"]))]):
            assert torch.equal(tower(inputs["pixel_values_videos"], grid_thw=grids).pooler_output, second)
    assert memo.hits == 1
    assert not torch.equal(first, second)


@only_full
@grid(family=["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", VIDEO_FAMILIES[-1]])
def test_samples_that_exit_beside_videos(family):
    model, guide = video_model(family), video_model(family, "sdpa", 1)
    samples = ("iv", "i", "v")
    inputs = dict(make_video_inputs(model, samples, (6, 9, 7)))
    more = {"video_frames": hint(samples)} if family in AS_IMAGES else {}
    with vlmprune.wrap(model, vlmprune.SGL(guide, keep=0.4)) as pruned:
        ours = model.generate(**inputs, **more, max_new_tokens=4, do_sample=False)[:, -4:]
        never = pruned.report
    sure = [(a + b) / 2 for a, b in zip(never.confidence, never.consistency, strict=True)]
    with vlmprune.wrap(model, vlmprune.SGL(guide, keep=0.4, exit_at=sorted(sure)[1])) as pruned:
        out = model.generate(**inputs, **more, max_new_tokens=4, do_sample=False)[:, -4:]
        report = pruned.report
    assert sum(report.exited) == 2
    left = report.exited.index(False)
    assert torch.equal(out[left], ours[left])
    assert torch.equal(report.kept[left], never.kept[left])
    assert [[span.kind[0] for span in own] for own in report.images] == [list(word) for word in samples]


def test_a_guide_that_sees_fewer_and_smaller_frames():
    """The guide's importance is moved through time and space; what is kept then equals masking the rest."""
    model, guide = video_model("qwen2_5_vl"), video_model("qwen3_vl", "sdpa", 1)
    ids = torch.tensor([[1, 20, 110, *[121] * 24, 111, 30, 31]])
    inputs = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": 2 * (ids == 121).long(),
        "pixel_values_videos": torch.randn(96, 96), "video_grid_thw": torch.tensor([[4, 4, 6]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }  # fmt: skip
    theirs = dict(make_video_inputs(guide, ("v",), (5,)))  # 2 frames of 2 x 3
    tokens = torch.randint(10, 99, (1, 5))
    method = vlmprune.SGL(guide, keep=0.25, guide_processor=object(), layer=1)
    with vlmprune.wrap(model, method) as pruned:
        found = forced_logits(model, inputs | {"guide_inputs": theirs}, tokens)
        report = pruned.report
    dropped = dropped_of(visual(model, inputs), report.kept)
    assert_near(found, masked_forced_logits(model, language_layers(model), inputs, dropped, 1, tokens))
    assert report.kept_tokens == [6]
    importance = Guide(guide).answer(theirs, {"max_new_tokens": 5}, whole=True).importance[0].view(2, 2, 3)
    # Frames 0 and 1 of the model are the guide's first, 2 and 3 its second; both have 2 x 3 tokens a frame.
    wanted = importance.repeat_interleave(2, dim=0).flatten().topk(6).values.sum()
    kept = importance.repeat_interleave(2, dim=0).flatten()[report.kept[0]].sum()
    assert float(wanted - kept) < 1e-4 * float(wanted)
