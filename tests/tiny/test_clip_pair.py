"""The bundled pair for clips: what it loads as, that it answers, and how commands come to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vlmprune
from demos.tiny_vlm.video.questions import STILL, clip_benchmark
from tests.support.commands import run
from vlmprune.inputs.video import read_clip
from vlmprune.tiny import CLIP_FRAMES, CLIPS, clip


def test_weights_are_small_and_safe() -> None:
    files = [file for file in CLIPS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}


def test_it_answers_the_bundled_clip_whole_and_pruned() -> None:
    """By the truth of the clip, which moves that way; by the processor's own count of tokens."""
    large, small, processor = vlmprune.load_tiny(video=True)
    assert not large.training and large.dtype == small.dtype == torch.float32
    shown, question = clip()
    assert len(shown.frames) == CLIP_FRAMES
    for keep in (1.0, 0.1):
        with vlmprune.wrap(large, vlmprune.SGL(guide=small, keep=keep), processor=processor) as pruned:
            found = pruned.ask(shown, question)
        assert found.text == "right"
        (span,) = found.report.images[0]
        assert (span.kind, span.grid[0], span.count) == ("video", CLIP_FRAMES, 8 * 49 + 1)


@pytest.mark.parametrize("which", [0, 1])
def test_what_one_frame_answers_is_answered_nearly_always(which: int) -> None:
    """Chance is an eighth of the colours."""
    *models, processor = vlmprune.load_tiny(video=True)
    right = []
    with vlmprune.wrap(models[which], "none", processor=processor) as plain:
        for family in STILL:
            for scene, question in clip_benchmark(family, 6, "validation"):
                found = plain.ask(read_clip(scene.frames(), fps=2.0), question.text)
                right.append(found.text == question.answer)
    assert sum(right) >= 10


def test_a_file_is_asked_about_without_naming_a_model(tmp_path: Path) -> None:
    frames = clip()[0].frames
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    about = ("Which way does the star move?", "--frames", "8", "--json")
    shown = json.loads(run("ask", str(path), *about, "--repeats", "1", "--keep", "0.25"))
    assert shown["unpruned"]["text"] == "right"
    assert shown["pruned"]["report"]["images"][0][0]["kind"] == "video"
    compared = json.loads(run("compare", str(path), *about, "--method", "uniform", "--keep", "0.25"))
    assert {row["method"] for row in compared["rows"]} >= {"none", "uniform"}
