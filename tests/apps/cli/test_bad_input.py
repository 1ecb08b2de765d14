"""Bad input is exit status 2, nothing on stdout, and exactly one line on stderr; never a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.apps.demo.pictures import png
from tests.support.commands import refused
from vlmprune.apps.cli import app


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 40), "red").save("good.png")
    Path("text.png").write_text("no image at all")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:60])
    Path("empty.png").touch()
    Path("bomb.png").write_bytes(png(20_000, 20_000))  # above twice Pillow's limit: an error of Pillow's
    Path("half-bomb.png").write_bytes(png(12_000, 10_000))  # above the limit: only a warning of Pillow's
    Path("folder").mkdir()
    return tmp_path


CASES = {
    "ask missing.png q": "no file 'missing.png'",
    "ask folder q": "'folder' is not a file",
    "ask text.png q": "not an image",
    "ask empty.png q": "not an image",
    "ask cut.png q": "cannot be read as an image",
    "ask bomb.png q": "pixels",
    "ask half-bomb.png q": "pixels",
    "ask good.png": "no question",
    "ask good.png |": "question is empty",
    "ask --keep 9.5": "9.5",
    "ask --keep 0": "keep=0",
    "ask --keep -0.1": "-0.1",
    "ask --keep nan": "nan",
    "ask --keep much": "'much'",
    "ask --layer 99": "99",
    "ask --method fastv --layer 0": "layer",
    "ask --layer deep": "'deep'",
    "ask --method fastvv": "did you mean 'fastv'?",
    "ask --method none --keep 0.5": "takes no --keep",
    "ask --method fastv --guide somewhere/else": "takes no --guide",
    "ask --model ./folder": "cannot be loaded",
    "ask --model ./nowhere": "must be a directory",
    "ask --model good.png": "must be a directory",
    "ask --overlay nowhere/o.png": "no directory 'nowhere'",
    "ask --overlay o.docx": "end the name in .png",
    "ask --overlay folder": "end the name in .png",
    "ask good.png q --overlay good.png": "another name",
    "ask --max-new-tokens 0": "--max-new-tokens",
    "ask --max-new-tokens few": "--max-new-tokens",
    "ask --repeats 0": "--repeats",
    "ask --frobnicate": "--frobnicate",
    "ask good.png q more": "more",
    "frobnicate": "frobnicate",
    "compare --questions 0": "--questions",
    "compare --questions 5 --model some/model": "bundled pair",
    "compare --questions 97": "--questions must be at most 96, as many as are bundled, got 97",
    "compare --keep 2.0": "2.0",
    "compare --method fastvv": "did you mean 'fastv'?",
    "compare --guide some/model": "--guide",
    "compare --seed -1": "--seed",
    "methods extra": "extra",
    "sinks --layer 1.5 --plot x.png": "must be a whole number of 0 or more, got '1.5'",
    "sinks --layer 99": "--layer 99 chooses what the plot shows; name a file with --plot",
    "sinks --layer 99 --plot x.png": "layer must be an int from 0 to 5, got 99",
    "ask http://example.com/a.png q": "'http://example.com/a.png' is a web address; download the image",
    "caption s3://bucket/a.png": "'s3://bucket/a.png' is a web address",
}


@pytest.mark.parametrize("command", CASES, ids=lambda c: c.replace(" ", "_"))
def test_one_line_and_status_2(command: str, files: Path) -> None:
    arguments = ["" if word == "|" else word for word in command.split(" ")]
    assert CASES[command] in refused(*arguments)


def test_an_overlay_that_cannot_be_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    line = refused("ask", "--overlay", "o.png", "--repeats", "1", "--max-new-tokens", "1")
    assert line == "vlmprune: 'o.png' cannot be written (No space left on device); choose another place"


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["vlmprune.apps.cli.ask"], "load_models", interrupt)
    result = CliRunner().invoke(app, ["ask"])
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["vlmprune: interrupted"]


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys.modules["vlmprune.apps.cli.ask"], "load_models", bug)
    assert isinstance(CliRunner().invoke(app, ["ask"]).exception, RuntimeError)


@pytest.mark.parametrize("command", ["ask", "caption", "plan", "demo", "sinks", "compare", "check", "methods", ""])
def test_flags_have_no_type_in_the_help(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"]).stdout
    assert "--help" in shown
    assert "bool" not in shown
