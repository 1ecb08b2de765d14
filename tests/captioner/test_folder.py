"""Folders: every image gets its record, a killed run goes on where it was, nothing is done twice."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlmprune
from demos.tiny_vlm.scenes import make_scene
from demos.tiny_vlm.vocabulary import IDS
from tests.support.grid import only_full
from vlmprune import VlmpruneError
from vlmprune.captioner import CaptionConfig, PatchCaptioner
from vlmprune.captioner.folder import write_whole
from vlmprune.captioner.prompts import BUNDLED

ROOT = Path(__file__).parents[2]
QUICK = {"prompts": BUNDLED, "view": "in_place", "samples": 2, "max_new_tokens": 5, "filter": False}

# What the killed process runs: each image it begins is a line in the log, on disk at once.
SCRIPT = """
import os, sys
import torch
torch.set_num_threads(1)
from tests.captioner.test_folder import captioner
captioner(sys.argv[3], stop_at=20).map(sys.argv[1], sys.argv[2])
"""


def tiny_model() -> Any:
    """As cheap as a vision-language model can be, with fixed weights that make it babble."""
    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=112, patch_size=8
    )
    text = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=len(IDS)
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_layer=-1, image_token_index=IDS["<image>"]
    )
    return LlavaForConditionalGeneration(config).eval()


def captioner(log: str | None = None, stop_at: int | None = None, **options: Any) -> PatchCaptioner:
    """A captioner that writes a line for each image it begins; at number `stop_at` it waits to be killed."""
    begun = itertools.count()

    def detector(image: Image.Image) -> list[Any]:
        if next(begun) == stop_at:
            signal.pause()
        if log is not None:
            with open(log, "ab", buffering=0) as file:
                file.write(f"{hashlib.sha256(image.tobytes()).hexdigest()}\n".encode())
        return []

    processor = vlmprune.load_tiny()[2]
    return PatchCaptioner(tiny_model(), processor, detector=detector, config=CaptionConfig(**QUICK), **options)


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fifty")
    for seed in range(50):
        make_scene(seed, "test").image().save(folder / f"{seed:02}.png")
    return folder


def said(records: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(Path(one["path"]).name, one["text"], one["sentences"]) for one in records]


@only_full
def test_kill_and_go_on(fifty: Path, tmp_path: Path) -> None:
    unbroken = captioner().map(fifty, tmp_path / "unbroken")
    assert len(unbroken) == 50
    assert not [one for one in unbroken if "error" in one]

    out, log = tmp_path / "broken", tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(fifty), str(out), str(log)], env=environment, cwd=ROOT,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while len(list((out / "records").glob("*.json"))) < 12:
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    finished = {path.name: path.read_bytes() for path in (out / "records").glob("*.json")}
    assert 12 <= len(finished) < 50
    assert all(json.loads(content)["text"] is not None for content in finished.values())  # whole, not torn
    begun = log.read_text().splitlines()
    resumed = captioner(str(log)).map(fifty, out)
    assert said(resumed) == said(unbroken)
    for name, content in finished.items():
        assert (out / "records" / name).read_bytes() == content
    again = log.read_text().splitlines()[len(begun) :]
    assert len(again) == 50 - len(finished)  # none that was finished; the one in hand when the kill came, at most
    assert len(begun) - len(finished) in (0, 1)

    lines = (out / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [one["text"] for one in unbroken]
    captioner(str(log)).map(fifty, out)
    assert len(log.read_text().splitlines()) == len(begun) + len(again)  # a third run has nothing to do


def test_one_bad_image_stops_nothing(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    make_scene(1, "test").image().save(good)
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [tmp_path / "bad.png", good, tmp_path / "missing.png"]
    model = captioner()
    records = model.map(paths, tmp_path / "out")
    assert [record["path"] for record in records] == [str(path) for path in paths]
    assert ["error" in record for record in records] == [True, False, True]
    assert "not an image" in records[0]["error"]
    make_scene(2, "test").image().save(tmp_path / "bad.png")  # mended: tried again
    assert ["error" in record for record in model.map(paths, tmp_path / "out")] == [False, False, True]


def test_a_failing_part_fails_its_image_only(tmp_path: Path) -> None:
    for seed in range(3):
        make_scene(seed, "test").image().save(tmp_path / f"{seed}.png")
    model = captioner()
    calls = 0

    def detector(image: Image.Image) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("the detector broke")
        return []

    model.detector = detector
    records = model.map(tmp_path, tmp_path / "out")
    assert [record.get("error") for record in records] == [None, "RuntimeError: the detector broke", None]


def test_a_changed_image_is_done_again_and_a_broken_record_too(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make_scene(1, "test").image().save(path)
    model = captioner()
    (first,) = model.map([path], tmp_path / "out")
    make_scene(5, "test").image().save(path)
    (second,) = model.map([path], tmp_path / "out")
    assert first["sha256"] != second["sha256"]
    (record,) = (tmp_path / "out" / "records").glob("*.json")
    record.write_text('{"sha256": "torn')
    assert said(model.map([path], tmp_path / "out")) == said([second])


def test_equal_names_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for seed, folder in ((1, "a"), (2, "b")):
        (tmp_path / folder).mkdir()
        make_scene(seed, "test").image().save(tmp_path / folder / "x.png")
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    records = captioner().map(paths, tmp_path / "out")
    assert records[0]["sha256"] != records[1]["sha256"]
    assert len(list((tmp_path / "out" / "records").glob("*.json"))) == 2


def test_captions_made_in_another_way_are_not_mixed_in(tmp_path: Path) -> None:
    make_scene(1, "test").image().save(tmp_path / "a.png")
    captioner().map(tmp_path, tmp_path / "out")
    with pytest.raises(VlmpruneError, match="another seed"):
        captioner(seed=7).map(tmp_path, tmp_path / "out")
    large, _, processor = vlmprune.load_tiny()
    with pytest.raises(VlmpruneError, match="another"):
        PatchCaptioner(large, processor, config=CaptionConfig(**QUICK)).map(tmp_path, tmp_path / "out")


def test_mapping_gives_what_a_call_gives(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make_scene(1, "test").image().save(path)
    model = captioner()
    (record,) = model.map([path], tmp_path / "out")
    alone = model(Image.open(path)).to_dict()
    assert {k: v for k, v in record.items() if k in alone and k != "cost"} == {
        k: v for k, v in alone.items() if k != "cost"
    }


@pytest.mark.parametrize("images", ["nowhere", [], [Image.new("RGB", (4, 4))]])
def test_nothing_to_caption(images: Any, tmp_path: Path) -> None:
    with pytest.raises(VlmpruneError):
        captioner().map(images, tmp_path / "out")


def test_files_are_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "one")
    write_whole(tmp_path / "a", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "two"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    make_scene(1, "test").image().save(tmp_path / "a.png")
    with pytest.raises(VlmpruneError, match="choose another place"):
        captioner().map([tmp_path / "a.png"], tmp_path / "a.png")
