"""Videos: pruned equals masked beside images and text, whatever order they come in; each budget is a video's.

The short list has one batch for every family that takes videos; `python -m tests.full video` runs every combination.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vlmprune
from tests.support.grid import either, grid, only_by_hand, only_full
from tests.support.masked_generate import dropped_of, forced_logits, masked_forced_logits
from tests.support.running import assert_near
from tests.support.tiny_families import build, make_inputs
from tests.support.videos import VIDEO_FAMILIES, hint, language_layers, make_video_inputs, video_model, visual

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
NO_VIDEO = "The prompt has a video, which is not supported yet; ask about its frames as a list of images."
MIXED, ALONE = ("viv", "iv"), ("v", "vv")
AS_IMAGES = ("smolvlm", "internvl")
STEPS = 6


def batches(family: str) -> list[tuple[str, ...]]:
    """GLM-4.1V itself refuses a prompt with an image and a video, since one id stands for both."""
    return [ALONE] if family == "glm4v" else [MIXED, ALONE]


def options(family: str, samples: tuple[str, ...]) -> dict[str, Any]:
    return {"video_frames": hint(samples)} if family in AS_IMAGES else {}


def tokens_for(batch: int, steps: int = STEPS) -> Tensor:
    return torch.randint(10, 99, (batch, steps + 1), generator=torch.Generator().manual_seed(1))


def masked(model: Any, inputs: Any, kept: list[Tensor], layer: int, tokens: Tensor) -> Tensor:
    dropped = dropped_of(visual(model, inputs), kept)
    return masked_forced_logits(model, language_layers(model), dict(inputs), dropped, layer, tokens)


SHORT = ["qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm", *VIDEO_FAMILIES[-2:-1]]  # perception_lm
REST = [family for family in VIDEO_FAMILIES if family not in SHORT]


@only_full
@pytest.mark.parametrize("family", REST)
def test_every_step_equals_masking_of_the_other_families(family):
    every_step(family, "sdpa", 0, True, 0.4)


@grid(
    family=either(SHORT, VIDEO_FAMILIES),
    attn=either(["sdpa"], ["sdpa", "eager"]),
    layer=[0, 2],
    mixed=either([True], [True, False]),
    keep=either([0.4], [0.4, 2]),
)
def test_every_step_equals_masking(family, attn, layer, mixed, keep):
    """A ragged batch of two with several videos and images each, its prompt and six steps."""
    every_step(family, attn, layer, mixed, keep)


def every_step(family: str, attn: str, layer: int, mixed: bool, keep: float | int) -> None:
    samples = batches(family)[0 if mixed else -1]
    model = video_model(family, attn)
    inputs = make_video_inputs(model, samples)
    tokens = tokens_for(2)
    plain = forced_logits(model, dict(inputs), tokens)
    with vlmprune.wrap(model, vlmprune.Random(keep=keep, layer=layer)) as pruned:
        found = forced_logits(model, dict(inputs) | options(family, samples), tokens)
        report = pruned.report
        with torch.no_grad():
            rows = model(**inputs, **options(family, samples)).logits[:, -1]
    assert_near(found, masked(model, inputs, report.kept, layer, tokens))
    assert_near(rows, found[:, 0])
    assert torch.equal(forced_logits(model, dict(inputs), tokens), plain)
    assert float((found - plain).abs().max()) > 1e-2
    assert report.visual_tokens == visual(model, inputs).sum(dim=1).tolist()
    for word, spans in zip(samples, report.images, strict=True):
        assert [span.kind[0] for span in spans] == list(word)
        assert torch.equal(torch.cat([span.positions for span in spans]), torch.arange(sum(s.count for s in spans)))
        for span in spans:
            most = max(1, int(keep * span.count + 0.5)) if isinstance(keep, float) else min(keep, span.count)
            assert len(span.kept) == most
            assert len(span.xy) == span.count
            if span.kind == "video":
                assert len(span.frame) == span.count
                assert span.frame.max() == span.grid[0] - 1
                assert sum(span.frames_kept) <= most


@grid(family=either(["qwen3_vl"], VIDEO_FAMILIES))
def test_everything_kept_is_bit_identical(family):
    samples = batches(family)[0]
    model = video_model(family)
    inputs, tokens = make_video_inputs(model, samples), tokens_for(2)
    plain = forced_logits(model, dict(inputs), tokens)
    for method in (vlmprune.Random(keep=1.0), vlmprune.Uniform(keep=10_000), vlmprune.Unpruned()):
        with vlmprune.wrap(model, method) as pruned:
            assert torch.equal(forced_logits(model, dict(inputs) | options(family, samples), tokens), plain)
            assert pruned.report.kept_tokens == pruned.report.visual_tokens


@only_full
@grid(family=[family for family in VIDEO_FAMILIES if family != "glm4v"], layer=[0, 2])
def test_beams_and_several_sequences(family, layer):
    """Beams and return sequences repeat rows: each is masked like its prompt.

    GLM-4.1V itself fails there, and Perception LM repeats the pixels of several videos of a prompt in a wrong order.
    """
    samples = ("vi", "iv") if family == "perception_lm" else MIXED
    model = video_model(family)
    inputs = make_video_inputs(model, samples)
    settings = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}
    with vlmprune.wrap(model, vlmprune.Random(keep=0.4, layer=layer)) as pruned:
        torch.manual_seed(0)
        out = model.generate(**inputs, **options(family, samples), do_sample=True, num_return_sequences=2, **settings)
        report = pruned.report
        beams = model.generate(**inputs, **options(family, samples), num_beams=2, do_sample=False, output_scores=True,
                               **settings)  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(pruned.report.kept, report.kept, strict=True))
    assert len(report.kept) == 2
    made = out.sequences[:, -4:].view(2, 2, 4)
    for i in range(2):
        expected = masked(model, inputs, report.kept, layer, made[:, i])
        assert_near(torch.stack(out.logits, dim=1)[i::2], expected)
    chance = masked(model, inputs, report.kept, layer, beams.sequences[:, -4:]).log_softmax(-1)
    score = chance.gather(2, beams.sequences[:, -4:, None]).squeeze(-1).mean(dim=1)
    torch.testing.assert_close(beams.sequences_scores, score, rtol=0, atol=1e-4)


@grid(family=either(["qwen2_5_vl"], VIDEO_FAMILIES))
def test_without_a_cache_and_in_turns(family):
    """Text, then images, then videos and images on one wrapped model: nothing of one prompt is left for the next."""
    model, tokens = video_model(family), tokens_for(2, 3)
    prompts = [("", ""), ("i", "ii"), *batches(family), ("ii", "i")]
    if family == "glm4v":
        prompts.insert(2, ("i", "i"))
    with vlmprune.wrap(model, vlmprune.Random(keep=0.4, layer=1)) as pruned:
        for samples in prompts:
            inputs, more = make_video_inputs(model, samples), options(family, samples)
            found, kept = forced_logits(model, dict(inputs) | more, tokens), pruned.report.kept
            spans = pruned.report.images
            with pruned.off():
                assert_near(found, masked(model, inputs, kept, 1, tokens))
            assert [[span.kind[0] for span in own] for own in spans] == [list(word) for word in samples]
            if any(samples):
                again = forced_logits(model, dict(inputs) | more | {"use_cache": False}, tokens)  # type: ignore[operator]
                assert_near(again, found)


# --- budgets over frames ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_every_frame_its_own_equal_budget(family):
    model = video_model(family)
    inputs, tokens = make_video_inputs(model, ALONE), tokens_for(2, 2)
    for method in (
        vlmprune.FastV(keep=0.5, layer=1, frames="even"),
        vlmprune.Random(keep=0.5, frames="even"),
        vlmprune.DivPrune(keep=0.5, frames="even"),
        vlmprune.Uniform(keep=0.5, frames="even"),
    ):
        with vlmprune.wrap(model, method) as pruned:
            found = forced_logits(model, dict(inputs), tokens)
            report = pruned.report
        assert_near(found, masked(model, inputs, report.kept, method.layer, tokens))
        for span in [span for spans in report.images for span in spans]:
            each = (span.count - int((span.frame < 0).sum())) // span.grid[0]
            assert span.frames_kept == [int(each * 0.5 + 0.5)] * span.grid[0]
        assert report.method["frames"] == "even"
    for keep, wanted in ((6, [[2, 2, 2]]), (2, [[1, 0, 1]]), (7, [[2, 2, 2]])):
        with vlmprune.wrap(model, vlmprune.Random(keep=keep, frames="even")) as pruned, torch.no_grad():
            model(**make_video_inputs(model, ("vv",), (9,), seed=1))
            spans = [span for span in pruned.report.images[0] if span.grid[0] == 3]
        assert [span.frames_kept for span in spans][:1] == wanted


def test_what_says_how_a_budget_lies_over_frames_is_checked():
    assert "frames" not in vlmprune.FastV().describe()
    for make, wanted in (
        (lambda: vlmprune.FastV(frames="odd"), "frames='odd' is unknown; use 'shared', 'even' or 'text'"),
        (lambda: vlmprune.PyramidDrop(frames="even"), "frames='even' needs a method that chooses once"),
        (lambda: vlmprune.FastV(frames="even", top_p=0.5), "without top_p"),
    ):
        with pytest.raises(vlmprune.VlmpruneError, match=wanted):
            make()


# --- check, sinks, other methods -------------------------------------------------------------------------------------


@grid(family=either(["llava_onevision"], VIDEO_FAMILIES))
def test_check_proves_it(family):
    samples = batches(family)[0]
    model = video_model(family)
    found = vlmprune.check(model, {**make_video_inputs(model, samples), **options(family, samples)}, layers=[0, 2])
    assert found.ok, str(found)


def test_sinks_of_a_video():
    model = video_model("qwen2_5_vl")
    inputs = make_video_inputs(model, ("iv",), (7,))
    width = model.config.text_config.hidden_size
    found = vlmprune.find_sinks(model, **inputs, tau=0.3 * width**0.5, sink_dims=list(range(width)))
    (sample,) = found.samples
    assert [span.kind for span in sample.images] == ["image", "video"]
    assert sample.visual.tolist() == visual(model, inputs)[0].nonzero()[:, 0].tolist()
    assert found.plot(number=1).size == found.plot(number=0).size
    json.dumps(found.to_dict())


@only_full
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_every_method_runs_and_what_only_drops_equals_masking(family):
    every_method(family)


@only_by_hand
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_every_method_runs_on_every_family(family):
    every_method(family)


# What some families lack: places of tokens, or a layer of attention before the one where FastV drops by default.
REFUSED = {
    "llava_next_video": ("needs to know where visual tokens lie",),
    "perception_lm": ("needs to know where visual tokens lie",),
    "qwen3_5": ("no attention layer to read before it", "drops before attention layers", "have a cache that grows"),
}


def every_method(family: str) -> None:
    """Those that read the tower are refused when a model of these families is wrapped."""
    samples = batches(family)[0]
    model, tokens = video_model(family), tokens_for(2)
    inputs = make_video_inputs(model, samples)
    ran = []
    for name in vlmprune.list_methods():
        if name in ("scope", "visionzip", "prumerge"):
            continue
        guide = (video_model(family, "sdpa", 1),) if name == "sgl" else ()
        method = vlmprune.list_methods()[name](*guide)
        said = None
        try:
            with vlmprune.wrap(model, method) as pruned:
                found = forced_logits(model, dict(inputs) | options(family, samples), tokens)
                report = pruned.report
        except vlmprune.VlmpruneError as error:
            said = str(error)
        if said is not None:
            assert any(words in said for words in REFUSED.get(family, ())), (name, said)
            continue
        assert bool(found.isfinite().all()), name
        assert [[span.kind[0] for span in own] for own in report.images] == [list(word) for word in samples], name
        merging = ("downsample", "pyramiddrop", "sparsevlm", "framefusion", "fastvid", "holitom", "semantic")
        if report.kept_tokens != report.visual_tokens and name not in merging:
            whole = inputs["input_ids"].shape[1]
            layer = sum(rows == whole for rows in report.layer_lengths)
            assert_near(found, masked(model, inputs, report.kept, layer, tokens))
            ran.append(name)
    assert len(ran) >= 9


# --- report ----------------------------------------------------------------------------------------------------------


def test_the_report_of_a_long_video_is_small_and_its_picture_a_sheet():
    model = video_model("qwen2_5_vl")
    t, h, w = 32, 28, 28
    ids = torch.tensor([[1, 20, 110, *[121] * (t * h * w // 4), 111, 30, 31]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == 121).long(),
        "pixel_values_videos": torch.randn(t * h * w, 96),
        "video_grid_thw": torch.tensor([[t, h, w]]),
        "second_per_grid_ts": torch.tensor([0.5]),
    }
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.05)) as pruned, torch.no_grad():
        model(**inputs)
        report = pruned.report
    (span,) = report.images[0]
    assert (span.kind, span.grid, span.count, span.seconds[:3]) == ("video", (32, 14, 14), 6272, (0.0, 0.5, 1.0))
    assert set(span.frames_kept) == {9, 10}
    record = report.to_dict()
    (kept,) = record["images"][0]
    assert kept["frames_kept"] == span.frames_kept
    assert kept["start"] == 0
    assert not {"xy", "positions", "frame"} & kept.keys()
    assert len(json.dumps(record)) < 12_000  # 314 kept tokens three times; 6,272 coordinates would be 150,000
    assert "9 to 10 of each of 32, 0 keep none" in str(report)
    frames = [Image.new("RGB", (56, 42), (250, 200, at)) for at in range(64)]
    sheet = report.overlay(frames)
    assert sheet.size[0] == 4 * 128  # of 56 pixels a line of text would not fit
    assert sheet.size[1] > 4 * 96
    first = sheet.crop((0, 0, 56, 42))
    light = sum(value > 200 for value in first.getchannel("R").tobytes())
    assert 0.03 < light / (56 * 42) < 0.09  # the kept tokens of a frame are 9 or 10 of 196
    for wrong in (frames[0], frames[:5]):
        with pytest.raises(vlmprune.VlmpruneError, match="of which the model saw 32"):
            report.overlay(wrong)


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(call: Callable[[], object], why: str = NO_VIDEO) -> None:
    with pytest.raises(vlmprune.VlmpruneError) as caught:
        call()
    assert str(caught.value) == why


def test_a_family_that_takes_no_videos_says_so_before_anything_runs():
    model = build("llava")
    inputs = make_inputs(model, text_lengths=(5,), images=(1,))
    ran: list[str] = []
    model.model.vision_tower.register_forward_pre_hook(lambda module, args: ran.append("tower"))
    video = {**inputs, "pixel_values_videos": torch.randn(1, 2, 3, 12, 12)}
    for method in ("none", "random", vlmprune.VAR(), vlmprune.SGL(build("llava", seed=1, layers=3))):
        with vlmprune.wrap(model, method):
            refused(lambda: model(**video))
            refused(lambda: model.generate(**video, max_new_tokens=2))
    refused(lambda: vlmprune.find_sinks(model, **video))
    assert not ran


def test_a_new_video_on_a_filled_cache():
    model = video_model("qwen2_vl")
    inputs = make_video_inputs(model, ("i",), (5,))
    clip = make_video_inputs(model, ("v",), (5,))
    with vlmprune.wrap(model, "random", keep=0.5), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(vlmprune.VlmpruneError, match="A new image or video in a later turn on a filled cache"):
            model(**{**clip, "attention_mask": None}, past_key_values=cache)


@pytest.mark.parametrize("method", ["none", "random", "var"])
def test_a_video_that_comes_as_features(method):
    """As `generate` hands it to its first forward."""
    model = video_model("qwen2_vl")
    inputs = make_video_inputs(model, ("v",), (5,))
    features = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    with torch.no_grad():
        made = model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        assert isinstance(made, BaseModelOutputWithPooling)
        with vlmprune.wrap(model, method) as pruned:
            whole = model(**inputs).logits[:, -1]
            kept = pruned.report.kept
            assert torch.equal(model(**features, mm_encoder_outputs={"video": made}).logits[:, -1], whole)
            assert torch.equal(pruned.report.kept[0], kept[0])


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (3, "is for a batch of 2"),
        ([[2, 0, 2], 3], "is not a list for sample 1"),
        ([[2, 0, 2], ["two", 2]], "has the entry 'two'"),
        ([[2, [], 2], [0, 2]], "has the entry [] for sample 0"),
        ([[[0.0, float("nan")], 0, 2], [0, 2]], "has the entry [0.0, nan] for sample 0"),
        ([[[False, True], 0, 2], [0, 2]], "has the entry [False, True] for sample 0"),
        ([[2, 0, 2], [0, 3]], "does not fit the 3 images or videos of sample 1"),
        ([[2, 0, 2], [0]], "does not fit the 3 images or videos of sample 1"),
        ([[3, 0, 2], [0, 2]], "joins images of different sizes"),
    ],
)
def test_a_hint_that_does_not_fit(frames, why):
    model = video_model("smolvlm")
    inputs = make_video_inputs(model, MIXED)
    with vlmprune.wrap(model, "random", keep=0.5), torch.no_grad(), pytest.raises(vlmprune.VlmpruneError) as caught:
        model(**inputs, video_frames=frames)
    assert why in str(caught.value)
    assert "give a list per sample with one entry per image or video" in str(caught.value)


def test_seconds_that_a_hint_gives():
    for family in ("internvl", "qwen3_vl"):
        model = video_model(family)
        inputs = make_video_inputs(model, ("iv",), (9,))
        with vlmprune.wrap(model, "random", keep=0.5) as pruned, torch.no_grad():
            number = 3
            model(**inputs, video_frames=[[0, [0.0, 1.5, 3.0]]])
            image, video = pruned.report.images[0]
        assert (image.seconds, video.seconds, video.grid[0]) == (None, (0.0, 1.5, 3.0), number)
