"""``vlmprune caption``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from demos.tiny_vlm.scenes import make_scene
from tests.support.commands import refused, run
from tests.support.grid import only_full
from vlmprune.apps.cli import app

QUICK = ("--samples", "1", "--max-new-tokens", "4")


def caption(*arguments: str) -> str:
    return run("caption", *arguments, *QUICK)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for seed in range(2):
        make_scene(seed, "test").image().save(f"in/{seed}.png")
    return tmp_path


def test_one_picture(folder: Path) -> None:
    shown = caption("in/0.png", "--overlay", "patches.png")
    for word in ("top left", "bottom right", "sentences kept", "describe 5", "visual tokens", "patches.png"):
        assert word in shown
    with Image.open("patches.png") as overlay:
        assert overlay.size == (112, 112)


def test_json_is_the_record_and_pruning_shows_in_it() -> None:
    full = json.loads(caption("--json", "--no-filter"))
    pruned = json.loads(caption("--json", "--no-filter", "--method", "random", "--keep", "0.25"))
    assert {"text", "patches", "sentences", "cost"} <= full.keys()
    assert full["cost"]["visual_tokens"] == 5 * 196
    assert pruned["cost"]["visual_tokens"] == 5 * 49
    assert pruned["cost"]["prefill_flops"] < full["cost"]["prefill_flops"]


def test_a_folder_and_again(folder: Path) -> None:
    Path("in/2.png").write_text("no picture")
    result = CliRunner().invoke(app, ["caption", "in", "--out", "out", *QUICK])
    assert result.exit_code == 2, result.output  # two of three is no success
    assert "2 of 3 captions in out" in result.stdout
    assert len(result.stderr.splitlines()) == 1
    assert "2.png failed" in result.stderr
    Path("in/2.png").unlink()
    records = json.loads(caption("in", "--out", "out", "--json"))
    assert [Path(record["path"]).name for record in records] == ["0.png", "1.png"]
    assert len(Path("out/captions.jsonl").read_text().splitlines()) == 2
    assert "another seed" in refused("caption", "in", "--out", "out", "--seed", "5", *QUICK)


def test_what_is_left_out_of_a_folder_is_said(folder: Path) -> None:
    """Sub-folders and other files; hidden ones, as macOS leaves them beside images, are none."""
    for name in ("._0.png", ".DS_Store", "notes.txt", "film.mpg", "page.eps", "more/2.png"):
        Path("in", name).parent.mkdir(exist_ok=True)
        Path("in", name).write_bytes(b"resource fork")
    result = CliRunner().invoke(app, ["caption", "in", "--out", "out", *QUICK])
    assert result.exit_code == 0, result.output
    assert "2 of 2 captions in out" in result.stdout
    others = "3 files of another kind (film.mpg, notes.txt, page.eps)"
    assert result.stderr == f"vlmprune: warning: Not captioned of 'in': 1 sub-folder (more) and {others}.\n"


@only_full
def test_failures_are_no_success(folder: Path) -> None:
    for number in range(2, 8):
        Path(f"in/{number}.png").write_text("no picture")
    result = CliRunner().invoke(app, ["caption", "in", "--out", "out", *QUICK, "--json"])
    assert (result.exit_code, len(json.loads(result.stdout))) == (2, 8)
    assert result.stderr.count("\n") == 6


CASES = {
    "missing.png": "no file 'missing.png'",
    "in/0.png --out somewhere": "--out is for the captions of a folder",
    "in --overlay o.png": "--overlay is for one image",
    "in/0.png --samples 0": "'--samples': must be a whole number of 1 or more, got '0'",
    "in/0.png --aggregator http://127.0.0.1:9/v1": "belong together",
    "in/0.png --aggregator localhost --aggregator-model m": "url must be a web address",
    "in/0.png --method fastvv": "did you mean 'fastv'?",
    "in/0.png --keep 0.5": "takes no --keep",
    "empty": "There are no images in 'empty'; give PNG",
}


@pytest.mark.parametrize("command", CASES, ids=lambda c: c.replace(" ", "_").replace("/", "-"))
def test_one_line_and_status_2(command: str, folder: Path) -> None:
    Path("empty").mkdir()
    assert CASES[command] in refused("caption", *command.split())
