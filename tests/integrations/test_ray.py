"""Ray's actors answer as one process does, and losing one costs nothing."""

from __future__ import annotations

import io
import json
import os
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

import vlmprune
from tests.support.engines import picture
from tests.support.grid import only_full
from tests.support.saved_families import save
from vlmprune.errors import VlmpruneError
from vlmprune.inputs.processor import load_processor
from vlmprune.integrations.ray import Asker, map_images

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is an optional extra")
QUESTIONS = ("What colour is the star?", "How many circles are there?")


@dataclass(frozen=True)
class Mortal(vlmprune.Uniform):
    """Kills its process at the second picture that it sees there, once in all."""

    marker: str = ""
    seen: ClassVar[list[int]] = []

    def select(self, prompt: Any) -> Any:
        self.seen.append(1)
        if len(self.seen) == 2 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().select(prompt)


@only_full  # a cluster of two actors, one of which is killed: a minute of both cores
def test_two_actors_are_one_process_even_when_one_dies(tmp_path: Path) -> None:
    import ray

    rows = []
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
        rows.append({"id": number, "image": str(tmp_path / f"{number}.png"), "question": QUESTIONS[number % 2]})
    large, _, processor = vlmprune.load_tiny()
    with vlmprune.wrap(large, vlmprune.Uniform(keep=0.2), processor=processor) as pruned:
        alone = [pruned.ask(picture(number), QUESTIONS[number % 2]).text for number in range(8)]
    marker = tmp_path / "died"
    try:
        done = map_images(rows, None, Mortal(keep=0.2, marker=str(marker)), workers=2).take_all()
    finally:
        ray.shutdown()
    assert marker.exists()
    assert [row["answer"] for row in sorted(done, key=lambda row: row["id"])] == alone
    assert {row["error"] for row in done} == {""}


def test_pictures_as_bytes_arrays_and_none_at_all() -> None:
    asker = Asker(
        {"model": None, "guide": None, "method": "sgl", "options": {"keep": 0.2}, "image": "image",
         "question": "question", "max_new_tokens": 8, "trust_remote_code": False}
    )  # fmt: skip
    buffer = io.BytesIO()
    picture(0).save(buffer, "png")
    images = [buffer.getvalue(), np.asarray(picture(0)), "no/such/file.png", b"no picture", 5]
    got = asker({"image": images, "question": [QUESTIONS[0]] * 5})
    assert got["answer"][0] == got["answer"][1] != ""
    assert got["error"][:2] == ["", ""]
    assert all(got["error"][2:])
    assert got["answer"][2:] == [""] * 3


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model that takes videos."""
    folder = tmp_path_factory.mktemp("qwen")
    save("qwen2_5_vl", folder)
    return str(folder)


FRAMES = [Image.new("RGB", (24, 16), (30 * number, 90, 240 - 30 * number)) for number in range(8)]


def test_videos_are_what_ask_makes_of_them(qwen: str, tmp_path: Path) -> None:
    path = str(tmp_path / "clip.gif")
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], duration=250)
    settings = {
        "model": qwen, "guide": None, "method": "uniform", "options": {"keep": 0.5}, "image": "image", "fps": None,
        "video": "video", "frames": 4, "question": "question", "max_new_tokens": 3, "trust_remote_code": False,
    }  # fmt: skip
    asker = Asker(settings)
    array = np.stack([np.asarray(frame) for frame in FRAMES])
    videos = [path, array, None, "no/such.mp4", path, ""]
    images = [None, None, np.asarray(FRAMES[0]), "", np.asarray(FRAMES[1]), np.asarray(FRAMES[2])]
    got = asker({"image": images, "video": videos, "question": [*QUESTIONS[:1] * 5, "a <|image_pad|> b"]})
    assert [bool(error) for error in got["error"]] == [False, False, False, True, False, True]
    kinds = [[one["kind"] for one in json.loads(text)["images"][0]] if text else [] for text in got["report"]]
    assert kinds == [["video"], ["video"], ["image"], [], ["image", "video"], []]
    model, processor = AutoModelForImageTextToText.from_pretrained(qwen), load_processor(qwen)
    with vlmprune.wrap(model, vlmprune.Uniform(keep=0.5), processor=processor) as pruned:
        alone = pruned.ask(video=path, question=QUESTIONS[0], frames=4, max_new_tokens=3)
    assert got["answer"][0] == alone.text
    assert json.loads(got["report"][0])["visual_tokens"] == alone.report.visual_tokens
    assert asker({"video": [path], "question": QUESTIONS[:1]})["answer"] == [alone.text]  # no column of images


@only_full  # a cluster
def test_videos_through_ray(qwen: str, tmp_path: Path) -> None:
    import ray

    rows = []
    for number in range(3):
        path = str(tmp_path / f"{number}.gif")
        FRAMES[number].save(path, save_all=True, append_images=FRAMES[number + 1 :], duration=250)
        rows.append({"id": number, "video": path, "question": QUESTIONS[0]})
    try:
        done = map_images(rows, qwen, "uniform", keep=0.5, frames=4, max_new_tokens=2).take_all()
    finally:
        ray.shutdown()
    assert {row["error"] for row in done} == {""}
    assert [len(json.loads(row["report"])["images"][0]) for row in done] == [1, 1, 1]


def test_bad_sampling_is_said_before_ray_starts() -> None:
    with pytest.raises(VlmpruneError, match="frames=0"):
        map_images([], None, "uniform", frames=0)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [("nothing", {}, "no method"), ("uniform", {"exit_at": 1}, "takes no"), (3, {}, "must be a name")],
)
def test_bad_methods_are_said_before_ray_starts(method: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(VlmpruneError, match=said):
        map_images([], None, method, **options)
