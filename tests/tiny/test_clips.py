"""Clips: the same from the same seed, every answer is true of the pixels, the training goes on exactly."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration

from demos.tiny_vlm.pair import export
from demos.tiny_vlm.video import train
from demos.tiny_vlm.video.clips import FRAMES, ClipScene, make_clip
from demos.tiny_vlm.video.processor import export_clip_processor
from demos.tiny_vlm.video.questions import FAMILIES, STILL, clip_benchmark
from demos.tiny_vlm.video.train import ClipTrainer, build, clip_pixels, visual_of
from demos.tiny_vlm.vocabulary import COLOURS
from vlmprune.inputs.processor import load_processor

from ..support.grid import only_full


def colours_at(clip: ClipScene, shape: str) -> list[str | None]:
    """Colour of a thing in every frame, read off the pixels at its own place; None where it is not seen."""
    (actor,) = (a for a in clip.actors if a.thing.shape == shape)
    pixels = clip.pixels().astype(float)
    bare = ClipScene(clip.ground, ()).pixels().astype(float)
    found: list[str | None] = []
    for frame, (x, y) in enumerate(actor.path):
        area = (slice(y, y + actor.thing.height), slice(x, x + actor.thing.width))
        changed = np.abs(pixels[frame] - bare[frame])[area].sum(-1) > 40
        if changed.mean() < 0.1:
            found.append(None)
            continue
        seen = np.median(pixels[frame][area][changed], axis=0)
        found.append(min(COLOURS, key=lambda name: float(np.square(seen - COLOURS[name]).sum())))
    return found


def path_of(clip: ClipScene, shape: str) -> tuple[int, int]:
    """By how much a thing's centre moves to the right and down over the clip."""
    (actor,) = (a for a in clip.actors if a.thing.shape == shape)
    first, last = actor.at(0), actor.at(FRAMES - 1)
    assert first is not None and last is not None
    return round(last.cx - first.cx), round(last.cy - first.cy)


def test_a_seed_gives_the_same_clip_and_another_split_another() -> None:
    assert make_clip(3, "test") == make_clip(3, "test")
    assert np.array_equal(make_clip(3, "test").pixels(), make_clip(3, "test").pixels())
    assert make_clip(3, "test").actors != make_clip(3, "train").actors
    assert make_clip(3, "test").ground.seed == 3 and make_clip(3, "test").ground.split == "test"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_agree_with_what_the_frames_show(family: str) -> None:
    for clip, question in clip_benchmark(family, 5, "validation"):
        words = re.findall(r"[a-z]+", question.text.lower())
        shapes = [w for w in words if w in {a.thing.shape for a in clip.actors}]
        seen = {a.thing.shape: colours_at(clip, a.thing.shape) for a in clip.actors}
        begins = {s: next(i for i, c in enumerate(colours) if c) for s, colours in seen.items()}
        if family == "direction":
            x, y = path_of(clip, shapes[0])
            assert {"left": x < 0, "right": x > 0, "up": y < 0, "down": y > 0}[question.answer] and x * y == 0
        elif family == "order":
            late = {s: at for s, at in begins.items() if at > 0}
            wanted = min if "first" in words else max
            assert question.answer == wanted(late, key=lambda s: late[s])
        elif family == "before":
            assert (question.answer == "yes") == (begins[shapes[0]] < begins[shapes[1]])
        elif family == "blinks":
            colours = seen[shapes[0]][begins[shapes[0]] :]
            assert question.answer == str(sum(c is None for c in colours))
        elif family == "end":
            assert question.answer == seen[shapes[0]][-1 if "end" in words else 0]
        elif family == "change":
            assert (question.answer == "yes") == (len(set(seen[shapes[0]]) - {None}) > 1)
        elif family == "colour":
            assert set(seen[shapes[0]]) == {question.answer}
        else:
            (colour,) = (w for w in words if w in COLOURS)
            assert set(seen[question.answer]) == {colour}


@only_full
def test_no_answer_is_right_too_often() -> None:
    for family in FAMILIES:
        answers = [question.answer for _, question in clip_benchmark(family, 150, "validation")]
        assert max(answers.count(a) for a in set(answers)) / len(answers) < 0.65
    assert set(STILL) < set(FAMILIES)


@only_full
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "BATCH", 1)
    whole = ClipTrainer(tmp_path / "whole", "small")
    for _ in range(2):
        whole.step(2)
    for _ in range(2):
        trainer = ClipTrainer(tmp_path / "parts", "small")
        trainer.step(2)
        trainer.state.save()
    assert trainer.state.meta["step"] == 2
    for mine, other in zip(whole.model.state_dict().values(), trainer.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


@only_full
def test_what_is_exported_reads_a_clip_as_training_does(tmp_path: Path) -> None:
    model = build("small").eval()
    export(model, tmp_path)
    export_clip_processor(tmp_path)
    processor = load_processor(str(tmp_path))
    clip = make_clip(1, "validation")
    talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Does the star move?"}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    inputs = processor(
        text=text, videos=[clip.frames()], do_sample_frames=False, return_tensors="pt",
        video_metadata=[
            {"fps": 2.0, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES)), "duration": 4.0}
        ],
    )  # fmt: skip
    stock = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (inputs["input_ids"] == stock.config.video_token_id).sum() == train.TOKENS
    torch.testing.assert_close(inputs["pixel_values_videos"], clip_pixels([clip]), atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = visual_of(model, clip_pixels([clip]))
        torch.testing.assert_close(visual_of(stock, inputs["pixel_values_videos"]), expected, atol=2e-2, rtol=0)
        stock(**inputs)
