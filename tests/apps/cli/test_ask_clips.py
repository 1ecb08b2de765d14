"""`vlmprune ask clip.gif`: frames, their overlay, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support.commands import run
from tests.support.saved_families import save
from vlmprune.apps.cli.app import app

QUESTION = "What colour is it?"
QUICK = ("--repeats", "1", "--max-new-tokens", "2", "--method", "temporal", "--keep", "0.5")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save("qwen2_vl", tmp_path_factory.mktemp("saved") / "qwen2_vl"))


@pytest.fixture
def clip(tmp_path: Path) -> str:
    """Eight frames of which half show something new."""
    frames = [Image.new("RGB", (56, 56), (200, 40 * (number // 2), 0)) for number in range(8)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=250)
    return str(tmp_path / "clip.gif")


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["ask", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    return line


def test_a_clip_is_asked_about_and_its_frames_are_drawn(model: str, clip: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    shown = json.loads(
        run("ask", clip, QUESTION, "--model", model, "--frames", "4", "--overlay", str(sheet), "--json", *QUICK)
    )
    (span,) = shown["pruned"]["report"]["images"][0]
    assert (span["kind"], span["grid"][0], len(span["frames_kept"])) == ("video", 2, 2)
    assert sum(span["frames_kept"]) * 2 == span["count"]
    pixels = np.asarray(Image.open(sheet).convert("RGB"))[-62:]  # below the frames: a bar for each
    bars = [int((half == (45, 190, 170)).all(axis=-1).sum()) for half in np.array_split(pixels, 2, axis=1)]
    one, other = span["frames_kept"]
    assert bars[0] * other == pytest.approx(bars[1] * one, rel=0.1)
    assert sum(bars) > 0


def test_without_frames_an_animated_image_is_an_image(model: str, clip: str) -> None:
    shown = json.loads(run("ask", clip, QUESTION, "--model", model, "--json", *QUICK))
    assert shown["unpruned"]["report"]["images"][0][0]["kind"] == "image"


def test_what_is_refused(clip: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "still.jpg")
    assert "--frames 4 is about videos" in refused(str(tmp_path / "still.jpg"), QUESTION, "--frames", "4")
    assert "--frames 4 is about videos, and none is given" in refused("--frames", "4")
    assert "must be a whole number" in refused(clip, QUESTION, "--frames", "0")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert "broken.mp4" in refused(str(tmp_path / "broken.mp4"), QUESTION)
