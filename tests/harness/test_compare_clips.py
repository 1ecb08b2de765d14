"""Clips among own questions: asked as `ask` asks them, with a sheet of their frames in the gallery."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmprune
from tests.support.commands import refused, run
from tests.support.grid import only_full
from tests.support.saved_families import save
from vlmprune import VlmpruneError
from vlmprune.harness.compare import Turns
from vlmprune.harness.models import load_models

QUESTION = "What colour is the star?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("qwen2_vl", tmp_path_factory.mktemp("saved") / "qwen2_vl")


@pytest.fixture(scope="module")
def models(folder: Path) -> Any:
    return load_models(str(folder), None, trust_remote_code=False)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = [Image.new("RGB", (48, 24), (30 * number, 200 - 20 * number, 0)) for number in range(8)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=250)
    Image.new("RGB", (24, 24), "red").save(tmp_path / "still.png")
    return tmp_path / "clip.gif"


def test_answers_and_costs_are_those_of_ask(models: Any, clip: Path) -> None:
    data = [
        {"video": clip, "question": QUESTION, "answers": "red"},
        {"image": clip.parent / "still.png", "video": clip, "frames": 2, "question": QUESTION, "answers": "blue"},
    ]
    found = vlmprune.compare(
        models.model, data, ["temporal"], processor=models.processor, keeps=(0.5,), frames=6, max_new_tokens=2
    )
    labels = [row.label for row in found.rows]
    assert not any(row.error for row in found.rows)
    for label, method in (("none", vlmprune.Unpruned()), ("temporal at 0.5", vlmprune.Temporal(keep=0.5))):
        lines = found.lines[labels.index(label)]
        with vlmprune.wrap(models.model, method, processor=models.processor) as pruned:
            first = pruned.ask(video=clip, question=QUESTION, frames=6, max_new_tokens=2, do_sample=False)
            both = pruned.ask(
                clip.parent / "still.png", QUESTION, video=clip, frames=2, max_new_tokens=2, do_sample=False
            )
        for line, answer in zip(lines, (first, both), strict=True):
            assert line["answer"] == answer.text
            assert line["kept_tokens"] == sum(answer.report.kept_tokens)
            assert line["prefill_flops"] == answer.report.prefill_flops
    assert found.rows[labels.index("no image")].visual_tokens == 0


def test_the_mask_of_a_clip_is_dark_where_tokens_were_dropped(models: Any, clip: Path) -> None:
    """Six frames in pairs: two rows of three on the sheet, each frame with what its pair has kept."""
    data = [{"video": clip, "frames": 6, "question": QUESTION, "answers": "red"}]
    method = vlmprune.Temporal(keep=0.5)
    found = vlmprune.compare(models.model, data, [method], processor=models.processor, keeps=(0.5,), max_new_tokens=1)
    (mask,) = found.lines[-1][0]["masks"]
    drawn = Image.open(io.BytesIO(base64.b64decode(mask))).convert("1")
    assert drawn.size == (3 * 64, 2 * (32 + 14))
    with vlmprune.wrap(models.model, method, processor=models.processor) as pruned:
        (span,) = pruned.ask(video=clip, question=QUESTION, frames=6, max_new_tokens=1).report.images[0]
    t, h, w = span.grid
    assert t == 3
    kept = {int(at) - int(span.positions[0]) for at in span.kept}
    for frame in range(6):
        left, top = frame % 3 * 64, frame // 3 * 46
        for row in range(h):
            for column in range(w):
                at = left + int((column + 0.5) * 64 / w), top + int((row + 0.5) * 32 / h)
                assert bool(drawn.getpixel(at)) == ((frame // 2 * h + row) * w + column in kept)
        assert all(drawn.getpixel((left + x, top + 32 + y)) for x in (0, 40) for y in (0, 13))  # its line of text


def test_another_sampling_is_another_answer(models: Any) -> None:
    """Else the second run is given the first one's recorded answer."""
    from vlmprune.harness.own_data import read_questions

    frames = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(4)]
    rows = [{"video": frames, "fps": 2, "frames": n, "question": "q", "answers": "r"} for n in (2, 3, 3)]
    turns = Turns(read_questions(rows), [], ["same"], 4, None)  # type: ignore[arg-type]  # nothing is answered
    first, second, third = (turns.key(0, at) for at in range(3))
    assert first != second == third


def test_a_model_without_videos_is_one_sentence(clip: Path, tmp_path: Path) -> None:
    large, _, processor = vlmprune.load_tiny()
    data = [
        (clip.parent / "still.png", QUESTION, "red"),
        {"video": clip, "question": QUESTION, "answers": "red"},
    ]
    with pytest.raises(
        VlmpruneError, match=r"^data, \[1\]: .* takes no videos \(LlavaProcessor reads none\); ask about"
    ):
        vlmprune.compare(large, data, [], processor=processor)
    # Clips alone go to the pair for clips; beside images they do not.
    rows = [{"image": str(data[0][0])}, {"video": str(clip)}]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row | {"question": QUESTION, "answers": ["red"]}) + "\n" for row in rows))
    said = refused("compare", "--data", str(mixed), "--out", str(tmp_path / "out"))
    assert "the bundled large model takes no videos" in said


@only_full
def test_lines_a_table_and_one_question_by_the_command(
    folder: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    row = {"video": "clip.gif", "question": QUESTION, "answers": ["red"]}
    Path("my.jsonl").write_text(json.dumps(row) + "\n")
    Path("my.csv").write_text(f"video,question,answers\nclip.gif,{QUESTION},red\n")
    words = ["--model", str(folder), "--methods", "temporal", "--keep", "0.5", "--frames", "4", "--max-new-tokens", "2"]
    lines, table = (json.loads(run("compare", "--data", name, *words, "--json")) for name in ("my.jsonl", "my.csv"))
    assert lines["rows"][0]["visual_tokens"] == table["rows"][0]["visual_tokens"] > 0
    page = Path("my-compare/gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "aspect-ratio: 128 / 92" in page  # four frames, two by two, each with a line below
    assert page.count("data:image/png;base64,") >= 3
    one = json.loads(run("compare", "clip.gif", QUESTION, *words, "--repeats", "1", "--json"))
    assert one["rows"][0]["answer"] is not None
    assert one["rows"][0]["visual_tokens"] == lines["rows"][0]["visual_tokens"]
