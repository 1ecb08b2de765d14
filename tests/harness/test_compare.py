"""`vlmprune.compare` on own questions: rows against the library, sums against loops, and going on after a stop."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmprune
from tests.support.commands import run
from tests.support.grid import only_full
from vlmprune import VlmpruneError
from vlmprune.apps.cli import app
from vlmprune.harness.baselines import entries
from vlmprune.harness.compare import processor_hash
from vlmprune.harness.comparison import Comparison, summarise
from vlmprune.harness.own_data import NAMES, read_questions
from vlmprune.methods import registry
from vlmprune.tiny import questions

COUNT = 4


@pytest.fixture(scope="module")
def pair() -> Any:
    return vlmprune.load_tiny()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user would make it: images and a file of questions about them."""
    folder = tmp_path_factory.mktemp("own")
    rows = []
    for number, one in enumerate(questions()[:COUNT]):
        name = f"{number}{one['image'].suffix}"
        shutil.copy(one["image"], folder / name)
        rows.append({"image": name, "question": one["question"], "answers": one["answers"]})
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "my.jsonl"


@pytest.fixture(scope="module")
def found(pair: Any, data: Path) -> Comparison:
    large, small, processor = pair
    methods = ["sgl", vlmprune.FastV(keep=0.3), vlmprune.FastV(keep=0.3, layer=1)]
    return vlmprune.compare(large, data, methods, processor=processor, guide=small, keeps=(0.25,), max_new_tokens=4)


def test_the_rows_are_the_baselines_and_the_methods(found: Comparison) -> None:
    assert [row.label for row in found.rows] == [
        "none", "small alone", "no image", "random at 0.25", "uniform at 0.25", "downsample at 0.25", "sgl at 0.25",
        "fastv at 0.3", "fastv (2) at 0.3",
    ]  # fmt: skip
    unpruned = found.rows[0]
    assert unpruned.p is unpruned.difference is None
    for row in found.rows:
        assert row.questions == COUNT
        assert row.accuracy is not None and 0 <= row.accuracy <= 1
        assert row.flops > 0 and row.kv_bytes > 0 and row.seconds > 0
    assert all(row.flops < unpruned.flops for row in found.rows[1:])
    assert [row.guide_flops > 0 for row in found.rows] == [row.method == "sgl" for row in found.rows]


def test_answers_and_costs_are_the_librarys(found: Comparison, pair: Any, data: Path) -> None:
    large, small, processor = pair
    asked = [json.loads(line) for line in data.read_text().splitlines()]
    for label, method in {"sgl at 0.25": vlmprune.SGL(small, keep=0.25), "none": vlmprune.Unpruned()}.items():
        at = [row.label for row in found.rows].index(label)
        flops = 0
        for one, line in zip(asked, found.lines[at], strict=True):
            with vlmprune.wrap(large, method, processor=processor) as pruned:
                answer = pruned.ask(data.parent / one["image"], one["question"], max_new_tokens=4, do_sample=False)
            assert line["answer"] == answer.text
            assert line["kept_tokens"] == answer.report.kept_tokens[0]
            flops += answer.report.prefill_flops + (answer.report.guide_flops or 0)
        assert found.rows[at].flops == pytest.approx(flops / COUNT)


def test_the_table_in_markdown(found: Comparison) -> None:
    heading, rule, *rest = str(found).splitlines()
    assert heading.count("|") == rule.count("|") == rest[0].count("|")
    assert "| none |  | " in rest[0]
    assert found.recommendation in str(found)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["rows"][0]["method"] == "none"


def test_the_models_come_back_as_they_were(pair: Any) -> None:
    large, _, processor = pair
    one = [(questions()[0]["image"], "What colour is the star?", "red")]
    with vlmprune.wrap(large, "uniform", keep=0.5, processor=processor) as mine:
        vlmprune.compare(mine, one, [], processor=processor, keeps=0.25, max_new_tokens=1)
        image = Image.new("RGB", (112, 112))
        assert mine.ask(image, "What colour is the star?", max_new_tokens=1).report.kept_tokens == [98]
    assert "generate" not in vars(large)


# -- sums against loops --------------------------------------------------------------------------------------------


def line(answer: str, flops: float = 1.0, seconds: float = 1.0) -> dict[str, Any]:
    costs = dict.fromkeys(("visual_tokens", "kept_tokens", "lm_tokens", "layer_avg_tokens", "kv_bytes"), 1)
    return {
        "answer": answer,
        "prefill_flops": flops,
        "seconds": {"total": seconds},
        "masks": [],
        "exited": False,
        "guide_flops": 0,
        **costs,
    }


def made(before: str, *rows: str, images: str, flops: tuple[float, ...] = ()) -> Comparison:
    """A comparison of answers that are right ("r") or wrong; `images` says which question shows which image."""
    pictures = {name: Image.new("RGB", (8, 8), (ord(name), 0, 0)) for name in set(images)}
    asked = read_questions([(pictures[name], "q", "r") for name in images])
    names = [("none", None, {}), *((f"method{n}", "0.5", {}) for n in range(len(rows)))]
    every = [[line(letter, cost) for letter in row] for row, cost in zip((before, *rows), (2.0, *flops), strict=False)]
    return summarise(asked, names, every, {"clusters": len(set(images))})


def test_accuracy_its_error_and_p_are_those_of_plain_loops() -> None:
    """Questions about one image are one cluster; p over every way to swap clusters, not over random ones."""
    before, after, images = "rrrrrrwwrrrr", "rwwwrwwrrwrr", "aabbccddeeff"
    row = made(before, after, images=images, flops=(1.0,)).rows[1]
    right = [float(letter == "r") for letter in after]
    was = [float(letter == "r") for letter in before]
    assert row.accuracy == pytest.approx(sum(right) / 12)
    assert (row.lost, row.gained, row.changed) == (5, 1, 6)
    names = sorted(set(images))
    own = {name: sum(r - row.accuracy for r, i in zip(right, images, strict=True) if i == name) for name in names}
    assert row.standard_error == pytest.approx(math.sqrt(6 / 5 * sum(value**2 for value in own.values())) / 12)
    moves = [sum(r - w for r, w, i in zip(right, was, images, strict=True) if i == name) for name in names]
    swaps = [abs(sum(sign * move for sign, move in zip(signs, moves, strict=True)))
             for signs in itertools.product((-1, 1), repeat=6)]  # fmt: skip
    exact = sum(total >= abs(sum(moves)) - 1e-9 for total in swaps) / len(swaps)
    assert row.p == pytest.approx(exact, abs=0.02)


def test_the_cheapest_row_without_a_loss_is_recommended_and_why() -> None:
    images = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP"
    right = "r" * len(images)
    losing = "w" * 12 + "r" * (len(images) - 12)
    found = made(right, right, losing, right, images=images, flops=(1.5, 0.5, 1.0))
    assert found.recommended is found.rows[3]
    assert found.rows[2].loses
    said = found.recommendation
    assert said.startswith(
        "method2 at 0.5: 50 % fewer FLOPs, no faster on this machine, no measurable loss on 42 questions"
    )
    assert "a loss below 14 points cannot be seen" in said  # 6 of 42 must lose for p < 0.05
    found = made(right, losing, images=images, flops=(1.0,))
    assert found.recommended is None
    assert "method0 at 0.5, -28.6 points" in found.recommendation
    assert "answers no question right" in made("wwww", "wwww", images="abcd", flops=(1.0,)).recommendation


def test_a_row_is_called_faster_where_it_was_in_most_questions() -> None:
    """Medians alone would call noise a speed-up: here the pruned row is faster in half of the questions."""
    asked = read_questions([(Image.new("RGB", (8, 8), (n, 0, 0)), "q", "r") for n in range(4)])
    names = [("none", None, {}), ("even", "0.5", {}), ("mostly", "0.5", {})]
    seconds = [(1, 1, 1, 1), (0.2, 0.2, 1.2, 1.2), (0.5, 0.5, 0.5, 1.2)]
    every = [[line("r", 2.0 - (at > 0) - 0.1 * at, spent) for spent in row] for at, row in enumerate(seconds)]
    found = summarise(asked, names, every, {"clusters": 4})
    assert [row.faster for row in found.rows] == [None, 0.5, 0.75]
    assert found.rows[2].speed_up == 2
    assert "2.0 times as fast" in found.recommendation
    assert "no faster on this machine" in summarise(asked, names[:2], every[:2], {"clusters": 4}).recommendation


def test_few_questions_recommend_with_a_warning() -> None:
    said = made("rrrr", "rrrr", images="abcd", flops=(1.0,)).recommendation
    assert "a loss below 100 points cannot be seen" in said
    assert "4 independent questions give a first impression only." in said


def test_a_loss_that_cannot_be_measured_is_no_recommendation_either() -> None:
    """One of 42 is more than the point that is tolerated."""
    images = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP"
    found = made("r" * 42, "w" + "r" * 41, images=images, flops=(1.0,))
    assert not found.rows[1].loses
    assert found.recommended is None


def test_changed_answers_begin_with_those_that_lost() -> None:
    found = made("rrww", "xrrv", images="abcd", flops=(1.0,))
    assert [(one["where"], one["before"], one["after"]) for one in found.changed] == [
        ("[0]", "r", "x"), ("[2]", "w", "r"), ("[3]", "w", "v"),
    ]  # fmt: skip


def test_the_gallery_escapes_what_it_shows_and_survives_a_missing_image(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (900, 30), colour).save(tmp_path / name)
    evil = "<script>alert(1)</script> & \"x\" 'y'"
    asked = read_questions([(tmp_path / "a.png", evil, "r"), (tmp_path / "b.png", "q", "r")])
    (tmp_path / "b.png").unlink()
    names = [("none", None, {}), (evil, "0.5", {})]
    found = summarise(
        asked,
        names,
        [[line("r"), line("r")], [line(evil), line("\ud83d")]],
        {"clusters": 2, "questions": 2, "model": evil},
    )
    page = found.to_html(tmp_path / "deep" / "gallery.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert html.unescape(page).count(evil) >= 4  # title, row, question, answer
    assert page.count("data:image/jpeg") == 1
    assert "The image could not be read again." in page
    assert "aspect-ratio: 480 / 16" in page
    with pytest.raises(VlmpruneError, match="cannot be written"):
        found.to_html(tmp_path / "a.png" / "gallery.html")


# -- stopping and going on -----------------------------------------------------------------------------------------


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A method behind which the user presses Ctrl-C once `left` prompts were pruned."""
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))

    @vlmprune.register_method(name="stopping")
    @dataclass(frozen=True)
    class Stopping(vlmprune.Pruner):
        left: ClassVar[list[int]] = [10**9]

        def score(self, prompt: Any) -> Any:
            self.left[0] -= 1
            if self.left[0] < 0:
                raise KeyboardInterrupt
            return [prompt.sample_hidden(i).norm(dim=-1) for i in range(len(prompt.layouts))]

    return Stopping


def answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@only_full
def test_a_stopped_command_goes_on(stopping: Any, data: Path, tmp_path: Path) -> None:
    """Ctrl-C is status 130; what was answered stays, a torn last line is dropped, and the rest comes out the same."""
    out = tmp_path / "out"
    words = ["compare", "--data", str(data), "--methods", "stopping", "--keep", "0.25", "--max-new-tokens", "2"]
    words += ["--json", "--out", str(out)]
    stopping.left[0] = 2  # one to warm up, one answer
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 130
    assert result.stdout == ""
    first, last = result.stderr.splitlines()
    assert (str(out) in first, last) == (True, "vlmprune: interrupted")
    before = answers(out)
    assert 6 < len(before) < 7 * COUNT
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"key": "torn')
    stopping.left[0] = 10**9
    whole = json.loads(run(*words))
    assert answers(out)[: len(before)] == before
    assert len(answers(out)) == 7 * COUNT
    again = json.loads(run(*words))
    assert again == whole
    assert len(answers(out)) == 7 * COUNT
    fresh = json.loads(run(*words[:-1], str(tmp_path / "fresh")))
    for one, other in zip(whole["rows"], fresh["rows"], strict=True):
        for name in one.keys() - {"seconds", "stages", "speed_up", "faster"}:
            assert one[name] == other[name], name
    # Another budget asks only what is new: 3 baselines and the method.
    run(*words, "--keep", "0.5")
    assert len(answers(out)) == 11 * COUNT


def test_two_at_once_in_one_folder_are_refused(stopping: Any, pair: Any, data: Path, tmp_path: Path) -> None:
    large, _, processor = pair
    said: list[str] = []

    def other(self: Any, prompt: Any) -> Any:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        raise KeyboardInterrupt

    def second() -> None:
        try:
            vlmprune.compare(large, data, [], processor=processor, out=tmp_path, max_new_tokens=1)
        except VlmpruneError as error:
            said.append(str(error))

    stopping.score = other
    with pytest.raises(KeyboardInterrupt):
        vlmprune.compare(large, data, ["stopping"], processor=processor, keeps=(0.25,), out=tmp_path, max_new_tokens=1)
    assert len(said) == 1 and "another comparison writes to" in said[0]


def test_a_row_that_does_not_run_says_why_and_a_bad_question_is_left_out(
    monkeypatch: pytest.MonkeyPatch, pair: Any, data: Path
) -> None:
    monkeypatch.setattr(registry, "_methods", dict(registry._methods))

    @vlmprune.register_method(name="picky")
    @dataclass(frozen=True)
    class Picky(vlmprune.Pruner):
        below: float = 0.0

        def score(self, prompt: Any) -> Any:
            if prompt.hidden.shape[1] > self.below:
                raise VlmpruneError("too long for it")
            return [prompt.sample_hidden(i).norm(dim=-1) for i in range(len(prompt.layouts))]

    large, _, processor = pair
    rows = [json.loads(line) for line in data.read_text().splitlines()][:2]
    rows = [{**row, "image": data.parent / row["image"]} for row in rows]
    rows[1]["question"] += " What colour is it?"
    lengths = []
    for row in rows:
        with vlmprune.wrap(large, "none", processor=processor) as plain:
            lengths.append(plain.ask(row["image"], row["question"], max_new_tokens=1).report.layer_lengths[0])
    assert lengths[0] < lengths[1]
    methods = [Picky(keep=0.3), Picky(keep=0.25, below=lengths[0] + 0.5)]
    found = vlmprune.compare(large, rows, methods, processor=processor, keeps=(0.5,), max_new_tokens=1)
    broken, partly = found.rows[-2:]
    assert broken.error == "too long for it"
    assert "too long for it" in str(found)
    assert found.failed == {"[1]": "too long for it"}
    assert partly.questions == found.rows[0].questions == 1
    assert partly.standard_error is None  # one question says nothing about others


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"methods": "fastvv"}, "did you mean 'fastv'?"),
        ({"methods": [5]}, "5"),
        ({"methods": "sgl"}, "'sgl' needs a small model"),
        ({"keeps": ()}, "keeps is empty"),
        ({"keeps": (2.5,)}, "2.5"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of 1 or more, got 0"),
        ({"frobnicate": 1}, "compare() has no option 'frobnicate'"),
        ({"scorer": "exakt"}, "did you mean 'exact'?"),
        ({"out": "/proc/nothing"}, "cannot be written"),
        ({"model": 5}, "cannot be wrapped"),
    ],
)
def test_bad_calls_are_one_sentence(pair: Any, data: Path, options: dict[str, Any], why: str) -> None:
    given = {"model": pair[0], "data": data, "methods": [], "processor": pair[2], **options}
    with pytest.raises(VlmpruneError) as caught:
        vlmprune.compare(**given)
    (message,) = str(caught.value).splitlines()
    assert why in message


# -- the command and its gallery -----------------------------------------------------------------------------------


@only_full
def test_the_command_prints_the_table_and_writes_the_gallery(data: Path, tmp_path: Path) -> None:
    shown = run(
        "compare", "--data", str(data), "--methods", "divprune", "--keep", "0.25", "--out", str(tmp_path),
        "--max-new-tokens", "2",
    )  # fmt: skip
    for word in (
        "±",
        "small alone",
        "no image",
        "random",
        "uniform",
        "downsample",
        "divprune",
        "median",
        "fewer FLOPs",
    ):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 120
    page = (tmp_path / "gallery.html").read_text()
    assert f"Gallery: {tmp_path / 'gallery.html'}" in " ".join(shown.split())
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\((?!data:)|<script", page)
    assert page.count("data:image/jpeg;base64,") == COUNT
    assert page.count("data:image/png;base64,") == 4 * COUNT


PAGE = (Path(__file__).parents[2] / "docs" / "own_questions.md").read_text()


def listing() -> list[dict[str, Any]]:
    (block,) = re.findall(r"^```json\n(.+?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [json.loads(line) for line in block.splitlines()]


def test_the_page_names_photographs_that_are_installed_and_every_scorer() -> None:
    found = util.find_spec("skimage")
    assert found is not None and found.origin is not None
    rows = listing()
    assert len({row["image"] for row in rows}) == 12
    assert all((Path(found.origin).parent / "data" / Path(row["image"]).name).is_file() for row in rows)
    assert set(re.findall(r"^\| `(\w+)` \| (?:it|one|several) ", PAGE, flags=re.MULTILINE)) == set(NAMES)


@only_full
def test_a_new_user_gets_from_photographs_to_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own file and command, its images drawn here, the model left out."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for row in listing():
        Image.effect_noise((90, 60), 80).convert("RGB").save(row["image"])
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listing()))
    (command,) = re.findall(r"^vlmprune (compare --data .+)$", PAGE, flags=re.MULTILINE)
    words = command.split()
    at = words.index("--model")
    run(*words[:at], *words[at + 2 :], "--max-new-tokens", "2")
    page = Path("my-compare/gallery.html").read_text()
    assert all(row["question"] in html.unescape(page) for row in listing())
    assert page.count("data:image/jpeg;base64,") == 12


@only_full
def test_a_killed_process_loses_nothing(data: Path, tmp_path: Path) -> None:
    """`kill -9`, then Ctrl-C, then to the end: every answer that was on disk is still there, once."""
    words = [sys.executable, "-m", "vlmprune", "compare", "--data", str(data), "--methods", "divprune", "--json"]
    words += ["--keep", "0.5", "0.25", "0.1", "--max-new-tokens", "2", "--out", str(tmp_path)]
    record = tmp_path / "answers.jsonl"
    before: list[str] = []
    for at, (stop, status) in enumerate([(signal.SIGKILL, -9), (signal.SIGINT, 130)], 1):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and (not record.exists() or record.read_bytes().count(b"\n") < 12 * at):
                time.sleep(0.02)
            process.send_signal(stop)
            shown, said = process.communicate()
        assert (process.returncode, shown) == (status, "")
        assert "Traceback" not in said
        lines = record.read_text().splitlines()
        assert lines[: len(before)] == before
        before = [line for line in lines if line.endswith("}")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["rows"]) == 15
    lines = record.read_text().splitlines()
    assert lines[: len(before)] == before
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 15 * COUNT


def test_answers_depend_on_the_processor(pair: Any) -> None:
    """Another size of images or another template was answered from the record of the first."""
    _, _, processor = pair
    before = processor_hash(processor)
    assert before == processor_hash(vlmprune.load_tiny()[2])
    other = vlmprune.load_tiny()[2]
    other.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert processor_hash(other) != before
    other = vlmprune.load_tiny()[2]
    other.chat_template = "{{ messages }}"
    assert processor_hash(other) != before


def test_a_budget_written_in_two_ways_is_one_row() -> None:
    """`vlmprune compare --keep .25 --keep 0.250` without --data had two rows of everything."""
    rows = [(name, keep) for name, keep, _ in entries(["random"], [0.25, 0.250, 1, 1.0], None)]
    assert rows == [("random", "0.25"), ("random", "1"), ("random", "1.0")]
