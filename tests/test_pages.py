"""The code on the README's and the documents' pages runs, with the models that it names saved in a cache of the Hub."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from PIL import Image

import vlmprune
from tests.support.grid import only_full
from tests.support.run_pages import blocks
from tests.support.saved_families import SAVED, save
from vlmprune.apps.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Ids of the Hub that pages name, and the family that stands in for the checkpoint.
NAMED = {
    "llava-hf/llava-1.5-7b-hf": "llava",
    "llava-hf/llava-v1.6-mistral-7b-hf": "llava_next",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "HuggingFaceM4/Idefics3-8B-Llama3": "idefics3",
    "OpenGVLab/InternVL3-8B-hf": "internvl",
    "google/gemma-3-4b-it": "gemma3",
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "mllama",
}


def cached(root: Path, name: str, family: str) -> None:
    """A tiny model of the family where a download of the id would lie."""
    folder = root / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    save(family, folder / "snapshots" / ("0" * 40))


def write_clip(path: Path) -> None:
    """A second of ten frames, half of them another colour."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(10):
            image = Image.new("RGB", (64, 64), (200, 30 if number < 5 else 200, 60))
            out.mux(stream.encode(av.VideoFrame.from_image(image)))
        out.mux(stream.encode())


@only_full
def test_every_python_block_runs(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(2):
        vlmprune.tiny.example()[0].save(tmp_path / "photos" / f"{number}.png")
    Image.new("RGB", (60, 40), (200, 30, 60)).save(tmp_path / "photo.jpg")
    if find_spec("av") is not None:
        write_clip(tmp_path / "clip.mp4")
    for name, family in NAMED.items():
        cached(tmp_path / "hub", name, family)
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    elsewhere = ("own_method", "own_family")  # test_docs runs these
    pages = [str(page) for page in PAGES if blocks(page) and page.stem not in elsewhere]
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.run_pages", *pages], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nran ") + done.stdout.startswith("ran ") >= 17


def test_every_named_checkpoint_has_a_stand_in() -> None:
    named = {name for page in PAGES for _, code in blocks(page) for name in re.findall(r'^name = "(.+)"', code, re.M)}
    assert named == set(NAMED)
    assert set(NAMED.values()) <= set(SAVED)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_its_options_exist(page: Path) -> None:
    group = typer.main.get_command(app)
    shells = re.findall(r"^```bash\n(.+?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in "".join(shells).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if word.rpartition("/")[2] == "vlmprune" and at + 1 < len(words) and not words[at + 1].startswith("-"):
                command = group.commands[words[at + 1]]
                known = {option for parameter in command.params for option in parameter.opts}
                given = {word for word in words[at + 2 :] if word.startswith("--")}
                assert given <= known, line
