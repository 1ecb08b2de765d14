"""Tasks about videos: scorers against references of the official scripts, what is counted, files in every form."""

from __future__ import annotations

import json
import random
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.run import evaluate, parser, settings_of
from eval.scorers import letters
from eval.settings import BASELINES, VIDEO_BASELINES
from eval.tables import table
from eval.tasks.base import Line
from eval.tasks.load import load
from eval.tasks.registry import TASKS
from eval.tasks.video import DRAWN, VideoChoice
from tests.eval.data import parquet, put
from tests.eval.video_data import VIDEO_BUILDERS, VIDEO_HUB, VIDEO_TSVS, hub_clips, video_tsv
from tests.support.grid import only_full
from tests.support.saved_families import save
from vlmprune import VlmpruneError

COUNT = 800
PIECES = (
    "A", "B", "C", "D", "E", "F", "a", "b", "e", "(A)", "(b)", "(E)", "A.", "b.", "C)", "[D]", "A man", "a dog", "CNA",
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
    "The correct option is", "The best option isThe correct option is", "Best answer:", "Best option:",
    "Best answer:Best option:", "option", "because", "of what can be seen in the video", "red car", "Red car.", "it",
    "two, three", "1,000", "U.S.", "3.5", "'E'", '"C"', "\n", "\t", "<=3.", "-", "I'd", "!",
)  # fmt: skip
TEXTS = ("red car", "it", "two, three", "a dog", "because", "Ed. B", "C walks. Then c sits", "A", "C cooks rice.")


def answers(seed: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Answers of up to eight pieces, many of one, some of them an option's text, and two to six options."""
    dice = random.Random(seed)
    for _ in range(COUNT):
        options = dict(zip("ABCDEF", dice.sample(TEXTS, dice.randint(2, 6)), strict=False))
        letter = dice.choice(list(options))
        own = (options[letter], f"{letter}. {options[letter]}", f"({letter}) {options[letter]}", letter)
        made = [dice.choice((*PIECES, *own * 4)) for _ in range(dice.choice((0, 1, 1, 2, 4, 6, 8)))]
        yield dice.choice((" ", " ", "", ". ", ", ")).join(made) if made else "", options


def first_capital(answer: str, glued: bool, wanted: str) -> str:
    """Video-MME's script: prefixes out, then the first letter; LongVideoBench's with all commas between prefixes."""
    said = answer.strip()
    for prefix in ("The best answer is", "The correct answer is", "The answer is", "The answer"):
        said = said.replace(prefix, "")
    pairs = [("The best option is", "The correct option is"), ("Best answer:", "Best option:")]
    for one, other in pairs:
        for prefix in [one + other] if glued else [one, other]:
            said = said.replace(prefix, "")
    if len(said.split()) > 10 and not any(letter in said for letter in wanted):
        return ""
    for letter in said:
        if letter in wanted:
            return letter
    return ""


def mcq_acc(truth: str, answer: str) -> bool:
    """lmms-eval's scorer of MVBench, which puts the right letter through the same mill as the answer."""

    def milled(said: str) -> str:
        line = said.strip()
        if len(line) > 1 and line[0].upper() in "ABCDE" and line[1] == ".":
            rest = line[2:].lstrip()
            spaces = line[2 : len(line) - len(rest)]
            # Where only spaces follow, one of them is the text.
            if (rest and "\n" not in rest) or (not rest and spaces.strip("\n")):
                return line[0].upper()
        line = said.replace("\n", " ").replace("\t", " ").strip()
        digits = any(line[at - 1].isdigit() and line[at : at + 1] == "," and line[at + 1 : at + 2].isdigit()
                     for at in range(1, len(line)))  # fmt: skip
        out = line
        for mark in ';/[]"{}()=+\\_-><@`,?!':
            edge = mark + " " in line or " " + mark in line
            out = out.replace(mark, "" if edge or digits else " ")
        kept, dropped = "", 0
        for at, letter in enumerate(out):
            if letter == "." and not out[at + 1 : at + 2].isdigit() and dropped < 32:
                dropped += 1
            else:
                kept += letter
        for mark in ("'", '"', ")", "("):
            kept = kept.strip(mark)
        kept = kept.strip().lower()
        for word in re.split(r"\W+", kept):
            if word in ("a", "b", "c", "d", "e"):
                return word.upper()
        return kept

    return milled(answer) == milled(truth)


def mmmu(answer: str, options: dict[str, str]) -> str | None:
    """MMMU's parser, which draws where this gives None."""
    for mark in [",", ".", "!", "?", ";", ":", "'"]:
        answer = answer.strip(mark)
    answer = " " + answer + " "
    found = [letter for letter in options if "(" + letter + ")" in answer]
    bracketed, by_text = bool(found), False
    if not found:
        found = [letter for letter in options if letter + " " in answer]
    if not found:
        found = [letter for letter in options if letter + "." in answer]
    if not found and len(answer.split()) > 5:
        found, by_text = [one for one, text in options.items() if text.lower() in answer.lower()], True
    if len(found) <= 1:
        return found[0] if found else None
    places = []
    for letter in found:
        if by_text:
            places.append(answer.lower().rfind(options[letter].lower()))
        else:
            places.append(answer.rfind("(" + letter + ")" if bracketed else " " + letter + " "))
    return found[int(np.argmax(places))]


def ego(answer: str, options: dict[str, str]) -> int:
    """lmms-eval's word matching for EgoSchema, whose options are "A. text"."""
    whole = [f"{letter}. {text}" for letter, text in options.items()]
    whole = [one if one[-1] == "." else one + "." for one in whole]
    for form in (whole, [one.split(". ")[1] for one in whole], [one.split(". ")[0] for one in whole]):
        if answer in form:
            return form.index(answer)
    return -1


@pytest.mark.parametrize("seed", [1, 2])
def test_letters_are_read_as_the_scripts_read_them(seed: int) -> None:
    read = dict.fromkeys(("mme", "lvb", "mvbench", "mmmu", "ego"), 0)
    for answer, options in answers(seed):
        mme, lvb = letters.video_mme_reading(answer, options), letters.long_video_bench_reading(answer, options)
        assert (mme or "") == first_capital(answer, True, "ABCD"), answer
        assert (lvb or "") == first_capital(answer, False, "ABCDE"), answer
        mvbench = letters.mvbench_reading(answer, options)
        for truth in options:
            assert (mvbench == truth) == mcq_acc(truth, answer), (answer, options)
        found = letters.mmmu_reading(answer, options)
        assert found == mmmu(answer, options), (answer, options)
        exact = letters.egoschema_reading(answer, options)
        assert (-1 if exact is None else list(options).index(exact)) == ego(answer, options), (answer, options)
        for name, one in zip(read, (mme, lvb, mvbench, found, exact), strict=True):
            read[name] += one is not None
    assert min(read.values()) > 20, read


def test_which_task_reads_how() -> None:
    readers = {
        "video-mme": letters.video_mme_reading, "mlvu": letters.video_mme_reading,
        "longvideobench": letters.long_video_bench_reading, "mvbench": letters.mvbench_reading,
        "next-qa": letters.mmmu_reading, "egoschema": letters.egoschema_reading,
    }  # fmt: skip
    assert {name: task.official for name, task in TASKS.items() if issubclass(task, VideoChoice)} == readers
    shown = {name for name, task in TASKS.items() if task.frames is not None}
    assert shown - {"clips"} == set(readers) == set(VIDEO_BUILDERS)  # clips are drawn here, and no script scores them
    assert {name for name in readers if TASKS[name].draws} == {"next-qa", "longvideobench"}  # type: ignore[attr-defined]


# -- what is counted --------------------------------------------------------------------------------------------------


def line(group: str, score: float, parsed: str | None = "A", answer: str = "A", **meta: Any) -> Line:
    return {"id": "1", "group": group, "answer": answer, "parsed": parsed, "score": score, "meta": meta}


def test_what_the_scripts_leave_out() -> None:
    """Video-MME's all answers without a letter, lmms-eval's of MVBench empty ones; a person none."""
    lines = [line("v", 1.0), line("v", 0.0), line("w", 0.0, None, "no letter"), line("w", 0.0, None, "")]
    for name, accuracy in (("video-mme", 1 / 2), ("mvbench", 1 / 3), ("egoschema", 1 / 4), ("mlvu", 1 / 4)):
        found = TASKS[name]().metrics(lines)
        assert found["accuracy"] == pytest.approx(accuracy)
        assert (found["accuracy_of_all"], found["unreadable"]) == (1 / 4, 1 / 2)
        assert TASKS[name](reading="person").metrics(lines)["accuracy"] == 1 / 4
        units = TASKS[name]().units(lines)
        assert list(units) == ["v", "w"]
        assert sum(unit[0] for unit in units.values()) / sum(unit[1] for unit in units.values()) == accuracy


def test_mlvu_is_the_mean_over_its_tasks() -> None:
    dice = random.Random(3)
    lines = [line(f"v{dice.randint(1, 9)}", float(dice.random() < 0.6), task=task)
             for task, count in (("order", 3), ("count", 11), ("ego", 6)) for _ in range(count)]  # fmt: skip
    parts = [[one["score"] for one in lines if one["meta"]["task"] == task] for task in ("order", "count", "ego")]
    expected = sum(sum(part) / len(part) for part in parts) / 3
    units = TASKS["mlvu"]().units(lines).values()
    assert TASKS["mlvu"]().metrics(lines)["accuracy"] == pytest.approx(expected)
    assert sum(unit[0] for unit in units) / sum(unit[1] for unit in units) == pytest.approx(expected)


def test_a_letter_is_drawn_by_the_questions_id(tmp_path: Path) -> None:
    VIDEO_BUILDERS["next-qa"](tmp_path / "next-qa")
    task = TASKS["next-qa"]()
    sample = load(task, tmp_path).samples[0]
    drawn = task.read(sample, "")
    assert drawn.startswith(DRAWN) and drawn == TASKS["next-qa"]().read(sample, "?")
    assert TASKS["next-qa"](reading="person").read(sample, "") is None
    assert task.read(sample, "(C) strum it") == sample.truth == "A" or task.read(sample, "(C)") == "C"


# -- files ------------------------------------------------------------------------------------------------------------


def kept(name: str, root: Path, **where: Any) -> list[tuple[Any, ...]]:
    data = load(TASKS[name](), root, **where)
    assert data.bad == []
    return [(one.prompt, one.truth, one.group, len(one.load(3).frames)) for one in data.samples]


@pytest.mark.parametrize("name", VIDEO_TSVS)
def test_a_tsv_of_vlmevalkit_asks_what_the_official_files_ask(name: str, tmp_path: Path) -> None:
    VIDEO_BUILDERS[name](tmp_path / "plain" / name)
    official = kept(name, tmp_path / "plain")
    VIDEO_BUILDERS[name](tmp_path / "kit" / name)
    for path in [*(tmp_path / "kit").glob("*/*.json"), *(tmp_path / "kit").glob("*/json/*.json")]:
        path.unlink()
    called, content = video_tsv(name)
    put(tmp_path / "kit" / name, f"{called}.tsv", content)
    found = kept(name, tmp_path / "kit")
    assert found and set(found) <= set(official)
    assert kept(name, tmp_path / "kit", dataset=str(tmp_path / "kit" / name / f"{called}.tsv")) == found


def test_parts_of_videos(tmp_path: Path) -> None:
    """Only frames between two seconds are shown; a folder of frames has three a second; what is cut is shown whole."""
    VIDEO_BUILDERS["mvbench"](tmp_path / "mvbench")
    path = tmp_path / "mvbench/json/episodic_reasoning.json"
    (row,) = json.loads(path.read_text())
    put(tmp_path / "mvbench", "json/episodic_reasoning.json", [row | {"start": 0.5, "end": 1.0}])
    by_id = {one.id: one.load(8) for one in load(TASKS["mvbench"](), tmp_path).samples}
    assert by_id["action_sequence/0"].seconds == [0.5, 1.0]
    assert by_id["action_antonym/0"].seconds == [0.0, 0.5, 1.0, 1.5]
    assert [one.getpixel((9, 9))[0] > 128 for one in by_id["episodic_reasoning/0"].frames] == [False, False]
    whole = tmp_path / "mvbench/video/star"
    (whole / "Charades_v1_480").rename(whole / "Charades_segment")
    by_id = {one.id: one.load(8) for one in load(TASKS["mvbench"](), tmp_path).samples}
    assert len(by_id["action_sequence/0"].frames) == 4


def test_videos_in_zips_of_several_parts(tmp_path: Path) -> None:
    parquet(tmp_path / "video-mme/videomme/test-00000-of-00001.parquet", VIDEO_HUB["video-mme"])
    hub_clips(tmp_path / "clips")
    for at, name in enumerate(("7", "v"), 1):
        with zipfile.ZipFile(tmp_path / f"video-mme/videos_chunked_0{at}.zip", "w") as archive:
            archive.write(tmp_path / f"clips/videos/{name}.gif", f"data/{name}.gif")
    assert [one[1:] for one in kept("video-mme", tmp_path)] == [("C", "v", 3)]


def test_a_video_that_is_missing_costs_its_questions(tmp_path: Path) -> None:
    VIDEO_BUILDERS["egoschema"](tmp_path / "egoschema")
    (tmp_path / "egoschema/videos/u-1.gif").unlink()
    data = load(TASKS["egoschema"](), tmp_path)
    assert [(bad.where, bad.why) for bad in data.bad] == [("questions.json 0", "there is no video 'u-1'")]
    (tmp_path / "egoschema/videos/u-2.gif").unlink()
    with pytest.raises(VlmpruneError, match=r"finds no file '.*egoschema/\*\.mp4'; put it there \(the videos"):
        load(TASKS["egoschema"](), tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("next-qa", "map_vid_vidorID.json", "{", "map_vid_vidorID.json is not JSON"),
        ("next-qa", "map_vid_vidorID.json", "[]", "map_vid_vidorID.json is of type list, not a table of names"),
        ("longvideobench", "lvb_val.json", "{}", "lvb_val.json is of type dict, not a list of questions"),
    ],
)
def test_a_file_of_another_shape_is_named(name: str, file: str, content: str, said: str, tmp_path: Path) -> None:
    VIDEO_BUILDERS[name](tmp_path / name)
    put(tmp_path / name, file, content)
    data = load(TASKS[name](), tmp_path)
    assert data.samples == [] and [bad.why[: len(said)] for bad in data.bad] == [said]


def test_official_splits(tmp_path: Path) -> None:
    VIDEO_BUILDERS["next-qa"](tmp_path / "next-qa")
    with pytest.raises(VlmpruneError, match=r"finds no file '.*val\.csv'"):
        load(TASKS["next-qa"](), tmp_path, split="val")
    assert len(load(TASKS["next-qa"](), tmp_path, split="test").samples) == 2
    with pytest.raises(VlmpruneError, match="--split chooses among parquet files or on the Hub, or of test, val"):
        load(TASKS["next-qa"](), tmp_path, split="train")
    VIDEO_BUILDERS["egoschema"](tmp_path / "egoschema")
    every = load(TASKS["egoschema"](), tmp_path, split="full").samples
    assert [one.truth for one in every] == ["D", None]
    assert TASKS["egoschema"]().score(every[1], "A") is None


# -- tables -----------------------------------------------------------------------------------------------------------


@only_full
def test_every_table_has_fewer_frames_smaller_frames_and_one_frame(tmp_path: Path) -> None:
    """At the tokens of the budget, where the model makes fewer of smaller frames; and nothing of this on images."""
    VIDEO_BUILDERS["next-qa"](tmp_path / "data/next-qa")
    rows = {}
    for family in ("qwen2_5_vl", "llava_onevision"):
        model = save(family, tmp_path / family)
        asked = ["--model", str(model), "--guide", str(model), "--baselines", "--method", "temporal", "--keep", "0.5",
                 "--frames", "4", "--max-new-tokens", "2", "--data", str(tmp_path / "data")]  # fmt: skip
        found = evaluate(
            settings_of(parser().parse_args(["--task", "next-qa", "--out", str(tmp_path / "out"), *asked]))
        )
        rows[family] = {one["method"]: one for one in found}
        assert set(rows[family]) == {*BASELINES, *VIDEO_BASELINES, "temporal"}
        assert {one["frames"] for one in found} == {4}
        assert all(len(one["units"]["above"]) == 1 for one in found if one["value"] is not None)  # one video
        shutil.rmtree(tmp_path / "out")
    tokens = {
        family: {name: one["costs"].get("lm_tokens") for name, one in found.items()} for family, found in rows.items()
    }
    assert tokens["qwen2_5_vl"] == dict.fromkeys(rows["qwen2_5_vl"], 12) | {"none": 24, "small-alone": 24, "blind": 0}
    assert (tokens["llava_onevision"]["fewer-frames"], tokens["llava_onevision"]["one-frame"]) == (9, 5)
    (why, _) = [one["why"] for one in rows["llava_onevision"]["smaller-frames"]["bad"]]
    assert why.startswith("however small the frames, the clip is more than the budget of 9 tokens")
    text = table(list(rows["qwen2_5_vl"].values()))
    assert "clustered by video" in text and "1 videos" in text and "Missing from this table" not in text
    assert "one-frame" in table([rows["qwen2_5_vl"]["none"]]).partition("Missing from this table")[2]


def test_what_is_about_videos_is_refused_on_images() -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(VlmpruneError) as caught:
            settings_of(parser().parse_args([*arguments, "--out", "x"]))
        return str(caught.value)

    none = ("--method", "none")
    assert "--frames 3 is about videos, and 'pope' has none" in said("--task", "pope", "--frames", "3", *none)
    assert "the row 'one-frame' is about videos" in said("--task", "pope", "--method", "one-frame")
    assert "--frames 0 is too small" in said("--task", "mlvu", "--frames", "0", *none)
    both = settings_of(parser().parse_args(["--task", "pope", "mlvu", "--baselines", "--out", "x"]))
    assert {run.task for run in both.runs() if run.method in VIDEO_BASELINES} == {"mlvu"}
