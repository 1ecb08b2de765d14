"""A clip at the page: asked about with a tiny model that takes videos, looked at frame by frame."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import vlmprune
from tests.support.grid import only_by_hand, only_full
from tests.support.saved_families import save
from vlmprune import VlmpruneError
from vlmprune.inputs.video import Clip, read_clip

from .axe import violations
from .conftest import Served, need, opened, start
from .support import result
from .visitor import Visitor, keep_picture

QUESTION = "How many are blue?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save("qwen2_5_vl", tmp_path_factory.mktemp("saved") / "qwen2_5_vl"))


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames, two of each colour."""
    path = tmp_path_factory.mktemp("clip") / "clip.gif"
    colours = ("navy", "olive", "teal", "maroon")
    frames = [Image.new("RGB", (240, 160), colours[number // 2]) for number in range(8)]
    for number, frame in enumerate(frames):
        frame.putpixel((number, 0), (255, 255, 255))  # else Pillow makes equal frames one
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    return path


@pytest.fixture(scope="module")
def video_engine(model: str) -> Any:
    need("gradio")
    from vlmprune.apps.demo.engine import Engine
    from vlmprune.harness.models import load_models

    return Engine(load_models(model, model, trust_remote_code=False), runs=1)


def payload(path: Path) -> Any:
    """A clip's file as an upload of the page."""
    from gradio.utils import get_upload_folder

    there = Path(get_upload_folder()) / path.name
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(path.read_bytes())
    return SimpleNamespace(path=str(there), orig_name=path.name)


def data_of(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(html.unescape(page.partition('data-live="')[2].partition('"')[0]))
    return found


@only_full
@pytest.mark.parametrize("method", ["temporal", "pyramiddrop"])
def test_the_page_gets_frames_and_their_tokens(video_engine: Any, method: str, clip_file: Path) -> None:
    """Beside the library's own report of the same call."""
    from vlmprune.apps.demo.ask import shown
    from vlmprune.apps.demo.layers import LARGE, SMALL
    from vlmprune.apps.demo.live import live
    from vlmprune.apps.demo.upload import checked_clip

    clip = checked_clip(payload(clip_file))
    assert isinstance(clip, Clip) and len(clip.frames) == 8
    models = video_engine.models
    run = result(video_engine, clip, QUESTION, method, 0.5)
    with vlmprune.wrap(models.model, method, processor=models.processor, keep=0.5) as pruned:
        report = pruned.ask(str(clip_file), QUESTION, frames=16, max_new_tokens=2).report
    (span,) = report.images[0]
    data = data_of(live(run))
    assert torch.equal(run.pruned.report.kept[0], report.kept[0])
    assert len(data["frames"]) == len(data["labels"]) == span.grid[0] == 4
    assert data["labels"][1] == f"Frame 2, {span.seconds[1]:.1f} s"
    bits = "".join(f"{int(digit, 16):04b}" for digit in data["masks"][data["keeps"].index(0.5)])
    per_frame = [
        sum(bit == "1" for bit, at in zip(bits, data["frame"], strict=False) if at == frame) for frame in range(4)
    ]
    assert per_frame == span.frames_kept
    for heat in (LARGE, SMALL):
        assert "Frames of the clip" in shown(video_engine, run, 1, heat)[6]


def test_what_a_clip_may_not_be(clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("gradio")
    from vlmprune.apps.demo import upload

    def said(path: Path) -> str:
        with pytest.raises(VlmpruneError) as caught:
            upload.checked_clip(payload(path))
        return str(caught.value)

    (tmp_path / "words.mp4").write_text("words")
    assert said(tmp_path / "words.mp4").startswith("'words.mp4' is no video")
    monkeypatch.setattr(upload, "CLIP_LIMITS", upload.ClipLimits(seconds=3))
    assert said(clip_file).startswith("'clip.gif' takes 4 s, more than 3")
    outside = SimpleNamespace(path=str(clip_file), orig_name="clip.gif")
    with pytest.raises(VlmpruneError, match="The clip is not an upload of this page"):
        upload.checked_clip(outside)
    assert upload.checked_clip(None) is None


@only_full
def test_a_model_without_videos_says_so(engine: Any) -> None:
    clip = read_clip([Image.new("RGB", (9, 9))] * 2, fps=2)
    with pytest.raises(VlmpruneError, match="the bundled large model takes no clips; start the demo with a model that"):
        engine.ask(clip, QUESTION, "fastv", 0.5)


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video_demo(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    need("gradio")
    served = start(tmp_path_factory.mktemp("served"), "--model", model)
    yield served
    assert served.stop() == 0, served.log.read_text()


@only_full
def test_a_clip_is_asked_about_and_looked_at(browser: Any, video_demo: Served, clip_file: Path) -> None:
    is_looked_at(browser, video_demo, clip_file, (1100, 900))


@only_by_hand
def test_so_it_is_on_a_phone(browser: Any, video_demo: Served, clip_file: Path) -> None:
    is_looked_at(browser, video_demo, clip_file, (390, 844))


def is_looked_at(browser: Any, video_demo: Served, clip_file: Path, size: tuple[int, int]) -> None:
    with opened(browser, video_demo.url, viewport=dict(zip(("width", "height"), size, strict=True))) as page:
        visitor = Visitor(page)
        visitor.clear()
        page.set_input_files("#ask-clip input[type=file]", clip_file)
        page.wait_for_selector("#ask-picture .vp-frame")
        page.wait_for_selector("#ask-clip", state="hidden")
        page.fill("#ask-question textarea", QUESTION)
        before = visitor.answer()
        page.click("#ask-go")
        visitor.until_answered(before)
        caption = page.locator("#ask-picture figcaption")
        page.wait_for_selector("#ask-picture figcaption:has-text('Frame 1, 0.2 s:')")
        first = page.locator("#ask-picture img").get_attribute("src")
        slider = page.locator("#ask-picture .vp-frame")
        slider.focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_selector("#ask-picture figcaption:has-text('Frame 4, 3.2 s:')")
        assert page.locator("#ask-picture img").get_attribute("src") != first
        bars = page.locator("#ask-picture .vp-over-time i")
        titles = [bar.get_attribute("title") for bar in bars.all()]
        counts = [[int(word) for word in title.partition(": ")[2].split(" of ")] for title in titles]
        assert len(counts) == 4
        kept, every = (sum(column) for column in zip(*counts, strict=True))
        assert f"In all {kept} of {every} visual tokens stay" in caption.inner_text()
        assert slider.get_attribute("aria-valuetext").startswith("Frame 4, 3.2 s")
        # On one screen: from the clip to both answers, however long, and nothing to scroll sideways.
        answers = page.locator("#ask-answers .vp-answer")
        answers.evaluate_all("all => all.forEach(one => { one.textContent += ' long'.repeat(400) })")
        top = page.locator("#ask-picture").bounding_box()["y"]
        end = page.locator("#ask-answers").bounding_box()
        assert end["y"] + end["height"] - top < size[1]
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        keep_picture(page, f"clip-{size[0]}")
        if size[0] == 390:
            assert violations(page) == []
        visitor.example(0)
        assert not page.locator("#ask-picture .vp-frame").count()
