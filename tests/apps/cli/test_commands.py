"""What the commands print when all is well."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmprune
from demos.tiny_vlm.bundle import ALBUM_QUESTION, ALBUM_SEEDS
from demos.tiny_vlm.scenes import make_scene
from tests.support.commands import run
from tests.support.grid import few, only_full
from vlmprune.accounting.scores import plain
from vlmprune.apps.cli import app
from vlmprune.apps.cli.ask import ALBUM_KEEP, predicted
from vlmprune.harness.baselines import BASELINES, CHANCE, default_method, held_out
from vlmprune.harness.measure import MethodRun, faster
from vlmprune.harness.parse import number
from vlmprune.inputs.images import read_image
from vlmprune.tiny import WEIGHTS

QUICK = ("--repeats", "1", "--max-new-tokens", "2")


def ask_json(*arguments: str) -> dict[str, Any]:
    return json.loads(run("ask", "--json", *QUICK, *arguments))


def test_ask_json_has_exactly_the_sides() -> None:
    answer = ask_json()
    assert list(answer) == ["unpruned", "pruned", "exit"]
    assert list(ask_json("--method", "fastv")) == ["unpruned", "pruned"]
    for side in answer.values():
        assert list(side) == ["text", "report"]
        assert isinstance(side["text"], str)
    assert answer["unpruned"]["report"]["method"]["name"] == "none"
    assert answer["pruned"]["report"]["method"]["name"] == "sgl"
    assert answer["exit"]["report"]["method"]["exit_at"] == 0.9
    visual = answer["unpruned"]["report"]["visual_tokens"]
    assert answer["unpruned"]["report"]["kept_tokens"] == visual == [4 * 196]
    assert answer["pruned"]["report"]["kept_tokens"] < visual
    assert answer["pruned"]["report"]["prefill_flops"] < answer["unpruned"]["report"]["prefill_flops"]


def test_the_example_shows_what_pruning_by_chance_loses() -> None:
    large, _, processor = vlmprune.load_tiny()
    images, question = vlmprune.tiny.album()
    answer = ask_json()
    assert {side["text"] for side in answer.values()} == {"blue"}
    assert answer["exit"]["report"]["exited"] == [True]
    wrong = 0
    for seed in range(10):
        with vlmprune.wrap(large, vlmprune.Random(keep=ALBUM_KEEP, seed=seed), processor=processor) as pruned:
            wrong += pruned.ask(images, question, max_new_tokens=2).text != "blue"
    assert wrong >= 7
    shown = run("ask", *QUICK)
    assert "random" in shown
    assert "Same answer" in shown or "same answer" in shown


def test_the_album_is_what_the_generator_draws() -> None:
    images, question = vlmprune.tiny.album()
    assert question == ALBUM_QUESTION
    for image, seed in zip(images, ALBUM_SEEDS, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(make_scene(seed, "test").image()))


def reported(seconds: list[float]) -> MethodRun:
    made = MethodRun(None, None, None)
    made.reports = [SimpleNamespace(seconds={"total": one}) for one in seconds]
    return made


def test_a_time_counts_as_saved_only_beyond_the_noise_of_the_run() -> None:
    assert faster(reported([4.0, 4.2, 5.0]), reported([2.0, 2.1, 3.9])) == 2.0
    assert faster(reported([4.0, 4.2, 5.0]), reported([2.0, 2.1, 4.1])) is None
    assert faster(reported([2.0, 2.1, 3.0]), reported([4.0, 4.2, 5.0])) == 0.5
    assert "prefill" in predicted()


def test_the_model_is_left_unwrapped_and_answers_as_the_library_does() -> None:
    large, small, processor = vlmprune.load_tiny()
    image, question = vlmprune.tiny.example()
    with vlmprune.wrap(large, "sgl", guide=small, processor=processor) as pruned:
        expected = pruned.ask(image, question, max_new_tokens=2, do_sample=False)
    found = ask_json("--method", "sgl")["pruned"]
    assert found["text"] == expected.text
    assert found["report"]["kept"] == expected.report.to_dict()["kept"]


@pytest.mark.parametrize(("text", "kept"), few([("1", 1), ("1.0", 196), ("0.25", 49), ("500", 196)], 4))
def test_keep_one_is_a_token_and_one_point_zero_all_of_them(text: str, kept: int) -> None:
    assert ask_json("--method", "random", "--keep", text)["pruned"]["report"]["kept_tokens"] == [kept]


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), ("0.25", 0.25), ("2e-1", 0.2), (" 3 ", 3)])
def test_numbers(text: str, value: float) -> None:
    assert number(text) == value
    assert type(number(text)) is type(value)


def test_the_guide_answers_alone_where_it_is_sure() -> None:
    report = ask_json("--exit-at", "0")["exit"]["report"]
    assert report["exited"] == [True]
    assert report["kept_tokens"] == [0]
    assert "the guide alone" in run("ask", "--exit-at", "0", *QUICK)


def test_without_a_small_model_the_usual_method_is_another() -> None:
    assert default_method(None, None) == default_method("model", "guide") == "sgl"
    assert default_method("model", None) == "fastv"


@only_full
def test_layer_reaches_the_method() -> None:
    assert ask_json("--layer", "3")["pruned"]["report"]["method"]["layer"] == 3
    assert ask_json("--layer", "0.5")["pruned"]["report"]["method"]["layer"] == 0.5


@pytest.mark.parametrize("method", few(sorted(vlmprune.list_methods()), 8))
def test_every_registered_method_can_be_named(method: str) -> None:
    assert ask_json("--method", method)["pruned"]["report"]["method"]["name"] == method


def without_times(shown: str) -> list[str]:
    """The question, the table and the model's line of what `ask` printed; of times the labels alone."""
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    lines = [re.sub(r"(time|times as fast)( .*|$)", r"\1", line) for line in lines if line]
    table = lines[: next(at for at, line in enumerate(lines) if line.startswith("times as fast")) + 1]
    return [*table, next(line for line in lines if line.startswith("Model: ")).partition(" Times")[0]]


def test_ask_prints_what_its_page_shows() -> None:
    page = (Path(__file__).parents[3] / "docs/command_line.md").read_text()
    block = re.findall(r"^```text\n(.+?)^```", page, flags=re.MULTILINE | re.DOTALL)[0]
    shown = run("ask", *QUICK)
    assert without_times(shown) == without_times(block)
    assert vlmprune.tiny.album()[1] in shown
    assert "median of 1 runs" in shown


def test_ask_with_a_method_asks_about_one_image() -> None:
    assert vlmprune.tiny.example()[1] in run("ask", "--method", "fastv", *QUICK)


def test_markup_in_a_question_is_text(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert "[bold]what[/bold] [/x]" in run("ask", str(tmp_path / "a.png"), "[bold]what[/bold] [/x]", *QUICK)


def test_overlay_has_the_size_of_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (120, 90), "white").save(tmp_path / "a.png")
    shown = run("ask", str(tmp_path / "a.png"), "What colour is it?", "--overlay", str(tmp_path / "o.png"), *QUICK)
    assert "o.png" in shown
    with Image.open(tmp_path / "o.png") as overlay:
        assert overlay.size == (120, 90)
        assert len(np.unique(np.asarray(overlay.convert("L")))) > 1  # some of it is dimmed


def test_words_the_tokenizer_lacks_are_said_once_on_stderr(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, ["ask", str(tmp_path / "a.png"), "What xylophone?", "--json", *QUICK])
    assert result.exit_code == 0
    json.loads(result.stdout)
    assert len(result.stderr.splitlines()) == 1
    assert "xylophone" in result.stderr


def test_a_model_in_a_directory_can_be_asked(tmp_path: Path) -> None:
    for part in ("small", "processor"):
        shutil.copytree(WEIGHTS / part, tmp_path, dirs_exist_ok=True)
    layers = json.loads((WEIGHTS / "small" / "config.json").read_text())["text_config"]["num_hidden_layers"]
    assert len(ask_json("--model", str(tmp_path), "--method", "random")["pruned"]["report"]["layer_lengths"]) == layers


def test_pictures_are_read_as_people_see_them(tmp_path: Path) -> None:
    turned = Image.new("RGB", (4, 2), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 4)
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((2, 2), 32768, dtype=np.uint16)).save(tmp_path / "grey16.png")
    assert read_image(tmp_path / "grey16.png").getpixel((0, 0)) == (128, 128, 128)


def test_methods_lists_the_registry() -> None:
    records = json.loads(run("methods", "--json"))
    assert [record["name"] for record in records] == list(vlmprune.list_methods())
    assert all(record["summary"] for record in records)
    shown = run("methods")
    assert all(name in shown for name in vlmprune.list_methods())


def test_compare_on_one_question() -> None:
    table = json.loads(run("compare", "--json", "--keep", "0.5", "--keep", "1", *QUICK))
    rows = [(row["method"], row["keep"]) for row in table["rows"]]
    alone = [("none", None), ("small alone", None), ("no image", None)]
    assert rows == [*alone, *((m, k) for m in BASELINES for k in ("0.5", "1"))]
    for row in table["rows"]:
        assert row["answer"] is not None
        assert row["accuracy"] is None  # nobody said which answer is right
        assert row["seconds"] > 0
    unpruned, *others = table["rows"]
    assert all(row["flops"] - row["guide_flops"] < unpruned["flops"] for row in others)
    assert {"model", "backend", "seed", "questions", "machine"} <= table["about"].keys()


@only_full
def test_compare_on_held_out_questions(tmp_path: Path) -> None:
    words = ["compare", "--questions", "5", "--keep", "0.25", "--max-new-tokens", "2", "--out", str(tmp_path)]
    shown = run(*words)
    for word in ("accuracy", "±", "small alone", "seed: 0", "questions: 5", CHANCE, *BASELINES):
        assert word in shown
    assert (tmp_path / "gallery.html").is_file()
    before = (tmp_path / "answers.jsonl").read_bytes()
    assert run(*words) == shown
    assert (tmp_path / "answers.jsonl").read_bytes() == before


def test_held_out_questions_come_from_the_seed() -> None:
    def texts(seed: int) -> list[str]:
        return [one["question"] for one in held_out(20, seed)]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)
    assert len(held_out(20, 0)) == 20


@pytest.mark.parametrize(
    ("given", "scored"), [("Red", "red"), ("red.", "red"), (" red ", "red"), ("", ""), ("red blue", "red blue")]
)
def test_exact_match_sees_words_only(given: str, scored: str) -> None:
    assert plain(given) == scored


def test_bare_command_shows_help() -> None:
    shown = run()
    assert all(command in shown for command in ("ask", "compare", "methods"))
    assert run("--version").strip() == f"vlmprune {vlmprune.__version__}"


@only_full
def test_python_m_vlmprune_in_a_real_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlmprune", "ask", "--json", *QUICK], capture_output=True, text=True, check=True
    )
    assert list(json.loads(done.stdout)) == ["unpruned", "pruned", "exit"]
    assert done.stderr == ""


@only_full
def test_bad_input_in_a_real_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vlmprune", "ask", "--keep", "9.5"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
