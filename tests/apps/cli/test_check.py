"""`vlmprune check`, and the page about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conformance.test_faults import positions_not_gathered
from tests.support.commands import refused, run
from tests.support.saved_families import save
from vlmprune.apps.cli import app

PAGE = (Path(__file__).parents[3] / "docs/check.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.+?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return text


def without_numbers(table: str) -> str:
    return re.sub(r"\S+e[-+]\d\d", "N", table).strip()


def test_the_page_shows_what_the_command_prints() -> None:
    words = block("bash").split()
    assert words[0] == "vlmprune"
    assert without_numbers(run(*words[1:])) == without_numbers(block("text"))


def test_a_model_of_the_user_s_by_its_own_processor(tmp_path: Path) -> None:
    save("qwen2_5_vl", tmp_path)
    report = json.loads(run("check", "--model", str(tmp_path), "--layer", "0", "--layer", "1", "--json"))
    assert report["ok"] is True
    assert report["worst"] <= report["bound"]
    assert report["model_type"] == "qwen2_5_vl"
    assert [one["layer"] for one in report["layers"]] == [0, 1]
    assert report["notes"] == []


def test_a_difference_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    positions_not_gathered(monkeypatch.setattr)
    result = CliRunner().invoke(app, ["check", "--layer", "1"])
    assert result.exit_code == 1
    assert "NOT exact" in result.stdout
    assert "step 0 (0 = prompt), layer 1 (LlamaDecoderLayer, full)" in result.stdout


def test_bad_input_is_one_line() -> None:
    assert "layers=9 is not one of the model's 6 decoder layers, 0 to 5" in refused("check", "--layer", "9")
    assert "must be a directory with a model" in refused("check", "--model", "/nonexistent")
