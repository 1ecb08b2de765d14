"""Units in which all must be right: MMBench's rotations, MME's pairs. None may count when a member is missing.

The circular rule is VLMEvalKit's (`eval_circular_group` in vlmeval/dataset/utils/multiple_choice.py: a question's rows
are those whose index is the same modulo a million, and it is hit when every row is), and so are the images that refer
to another row (`ImageBaseDataset` in vlmeval/dataset/image_base.py: a cell of at most 64 characters is an index).
"""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.run import main
from eval.tasks.base import Sample, Task
from eval.tasks.load import Data, load
from eval.tasks.registry import TASKS
from tests.eval.data import BUILDERS, jpeg, parquet, put
from vlmprune import VlmpruneError

FILE = "mmbench_dev_en_20231003.tsv"
MILLION = 1_000_000


def png(number: int) -> bytes:
    """A picture that differs from all others."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (number, 255 - number, 7)).save(file, "PNG")
    return file.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def circular_rows(questions: int = 20, *, options: int = 4, first: int = 1) -> list[dict[str, str]]:
    """All rotations of every question; those after the first refer to the first row's image by its index."""
    rows = []
    for turn in range(options):
        for at in range(questions):
            index = first + at
            texts = [f"option {(k + turn) % options}" for k in range(options)]
            right = (at - turn) % options  # of question i, option i is right at first
            cells = {letter: texts[k] if k < options else "" for k, letter in enumerate("ABCD")}
            image = b64(png(at)) if turn == 0 else str(index)
            rows.append(
                {"index": str(index + turn * MILLION), "question": f"Which of {at}?", **cells, "answer": "ABCD"[right],
                 "category": "c", "image": image}
            )  # fmt: skip
    return rows


def tsv(rows: list[dict[str, str]]) -> str:
    names = ["index", "question", "A", "B", "C", "D", "answer", "category", "image"]
    return "\n".join("\t".join(cells) for cells in [names, *([row[name] for name in names] for row in rows)]) + "\n"


def loaded(root: Path, rows: list[dict[str, str]], **options: Any) -> tuple[Task, Data]:
    put(root / "mmbench", FILE, tsv(rows))
    task = TASKS["mmbench"]()
    return task, load(task, root, **options)


def lines(task: Task, samples: list[Sample], answers: list[str]) -> list[dict[str, Any]]:
    out = []
    for sample, answer in zip(samples, answers, strict=True):
        parsed = task.read(sample, answer)
        out.append(
            {"id": sample.id, "group": sample.group, "parsed": parsed, "score": task.score(sample, parsed),
             "meta": sample.meta}
        )  # fmt: skip
    return json.loads(json.dumps(out))


def official(ids: list[str], hits: list[bool]) -> float:
    """VLMEvalKit's accuracy: over the questions below a million, whether all rows of the question were hit."""
    mains = [int(one) for one in ids if int(one) < MILLION]
    return sum(
        all(hit for one, hit in zip(ids, hits, strict=True) if int(one) % MILLION == main) for main in mains
    ) / len(mains)


@pytest.mark.parametrize("options", [2, 3, 4])
@pytest.mark.parametrize("letter", "AB")
def test_one_letter_for_all_gets_nothing(tmp_path: Path, options: int, letter: str) -> None:
    task, data = loaded(tmp_path, circular_rows(20, options=options))
    assert data.bad == []
    assert len(data.samples) == 20 * options
    rows = lines(task, data.samples, [letter] * len(data.samples))
    assert task.metrics(rows)["accuracy"] == 0.0
    assert task.metrics(rows)["accuracy_without_rotations"] == pytest.approx(1 / options)
    right = lines(task, data.samples, [sample.truth for sample in data.samples])
    assert task.metrics(right)["accuracy"] == 1.0


def test_any_answers_score_as_the_official_rule_says(tmp_path: Path) -> None:
    task, data = loaded(tmp_path, circular_rows(20, options=2) + circular_rows(15, options=3, first=100))
    dice = random.Random(0)
    for share in (0.5, 0.7, 0.9):
        answers = [one.truth if dice.random() < share else dice.choice("ABCD") for one in data.samples]
        rows = lines(task, data.samples, answers)
        hits = [answer == one.truth for answer, one in zip(answers, data.samples, strict=True)]
        found = task.metrics(rows)["accuracy"]
        assert found == pytest.approx(official([one.id for one in data.samples], hits))
        assert 0 < found < 1
        assert sum(unit[0] for unit in task.units(rows).values()) == pytest.approx(35 * found)


def test_references_lead_to_the_picture_wherever_it_stands(tmp_path: Path) -> None:
    """To a later row, through another reference, with a table's ".0", and where the digits are base64 too."""
    rows = circular_rows(2, options=2, first=1000)
    # 1000 -> 1001000 -> 1001001 -> 1001, which holds the picture of both; "1000" is base64 as well.
    cells = {"1000": "1001000", "1001000": "1001001.0", "1001001": " 1001"}
    for row in rows:
        row["image"] = cells.get(row["index"], row["image"])
    assert base64.b64decode("1000", validate=True)
    _, data = loaded(tmp_path, rows[::-1])
    assert data.bad == []
    assert {one.load_image().getpixel((0, 0)) for one in data.samples} == {(1, 254, 7)}


def test_references_that_lead_nowhere_cost_the_row_and_so_the_question(tmp_path: Path) -> None:
    rows = circular_rows(4, options=2)
    images = {"1000001": "77", "1000002": "1000002", "1000003": "4", "4": "1000004", "1000004": "4"}
    for row in rows:
        row["image"] = images.get(row["index"], row["image"])
    task, data = loaded(tmp_path, rows)
    assert [bad.why for bad in data.bad] == [
        "the field 'image' refers to row 1000004, which refers back to itself".replace("1000004", number)
        if number
        else "the field 'image' refers to row 77, which is not there or has no image"
        for number in ("1000004", "", "1000002", "4", "4")
    ]
    assert [one.id for one in data.samples] == ["1", "2", "3"]
    # Without any whole question there is nothing to say.
    assert task.metrics(lines(task, data.samples, ["A"] * 3)) == {}
    assert task.units(lines(task, data.samples, ["A"] * 3)) == {}
    with pytest.raises(VlmpruneError, match="has a fault at"):
        loaded(tmp_path, rows, strict=True)


def test_a_missing_rotation_leaves_its_question_out(tmp_path: Path) -> None:
    rows = [row for row in circular_rows(20) if row["index"] not in ("2000005", "3000007")]
    task, data = loaded(tmp_path, rows)
    for answers in (["A"] * len(data.samples), [one.truth for one in data.samples]):
        found = lines(task, data.samples, answers)
        assert len(task.units(found)) == 18
        assert "5" not in task.units(found)
        # The record may lack a line as well: that question goes too, and no more.
        assert len(task.units(found[1:])) == 17
    with pytest.raises(VlmpruneError, match="a fault at 5: 3 of its 4 questions are there"):
        loaded(tmp_path, rows, strict=True)


def test_a_row_twice_is_no_rotation(tmp_path: Path) -> None:
    rows = circular_rows(2, options=3)
    rows[-1] = dict(rows[0])
    task, data = loaded(tmp_path, rows)
    assert [bad.where for bad in data.bad] == ["1"]
    assert list(task.units(lines(task, data.samples, ["A"] * 5))) == ["1"]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_a_limit_cuts_no_question_in_two(tmp_path: Path, limit: int) -> None:
    """The rotations of a question stand far behind it in the file."""
    task, data = loaded(tmp_path, circular_rows(20, options=3), limit=limit)
    assert len(data.samples) == 3 * limit
    found = lines(task, data.samples, [one.truth for one in data.samples])
    assert task.metrics(found)["accuracy"] == 1.0
    assert len(task.units(found)) == limit


def test_references_in_a_table(tmp_path: Path) -> None:
    rows = circular_rows(3, options=2)
    table = {name: [row[name] or None for row in rows] for name in rows[0]}
    parquet(tmp_path / "mmbench/a.parquet", {**table, "index": [int(row["index"]) for row in rows]})
    task = TASKS["mmbench"]()
    data = load(task, tmp_path)
    assert data.bad == []
    assert [one.load_image().getpixel((0, 0))[0] for one in data.samples] == [0, 1, 2, 0, 1, 2]
    assert task.metrics(lines(task, data.samples, ["A"] * 6))["accuracy"] == 0.0


@pytest.mark.parametrize("kind", ["text", "table"])
def test_indices_as_floats_are_indices(tmp_path: Path, kind: str) -> None:
    """What a table becomes that went through pandas with a cell missing: "1.0", and NaN where nothing stood."""
    rows = circular_rows(3, options=2)
    for row in rows:
        row.update(index=row["index"] + ".0", C="NaN", D=" ")
        if len(row["image"]) < 64:
            row["image"] += ".0"
    if kind == "text":
        task, data = loaded(tmp_path, rows)
    else:
        table = {name: [row[name] for row in rows] for name in rows[0]}
        parquet(tmp_path / "mmbench/a.parquet", {**table, "index": [float(row["index"]) for row in rows]})
        task = TASKS["mmbench"]()
        data = load(task, tmp_path)
    assert data.bad == []
    assert [one.id for one in data.samples] == ["1", "2", "3", "1000001", "1000002", "1000003"]
    assert "C." not in data.samples[0].prompt
    found = lines(task, data.samples, ["A"] * 6)
    assert (task.metrics(found)["accuracy"], len(task.units(found))) == (0.0, 3)


def test_a_picture_that_is_a_number_is_one_sentence() -> None:
    """A table's column of references alone, which became floats."""
    for cell in (1.0, float("nan"), 7, [b"x"]):
        with pytest.raises(VlmpruneError, match="no file's content; check the data"):
            Sample("1", "", lambda cell=cell: cell, "").load_image()


# -- MME: its script asserts two questions a picture and counts the pictures whose two are right ----------------------


def mme(root: Path, **changed: str) -> tuple[Task, Data]:
    BUILDERS["mme"](root / "mme")
    for name, content in changed.items():
        put(root / "mme/MME_Benchmark_release_version", f"{name}/0.txt", content)
    task = TASKS["mme"]()
    return task, load(task, root)


def test_a_picture_with_one_question_is_no_point_for_mme(tmp_path: Path) -> None:
    red = "Is it red? Please answer yes or no.\tYes\n"
    task, data = mme(tmp_path, color=red, count=red + "Is it blue?\tmaybe\n", posters=red + red)
    assert [bad.why for bad in data.bad] == [
        "the answer is 'maybe', not Yes or No",
        "'posters/0' was asked this before; the first time counts",
    ]
    found = task.metrics(lines(task, data.samples, ["yes"] * len(data.samples)))
    # Half of every pair is right and no pair whole: 50 of 200. The three single questions would add 150 each.
    assert found["score_share"] == 0.25
    assert not any(name.endswith(("/color", "/count", "/posters")) for name in found)
    assert not {"color/0", "count/0", "posters/0"} & task.units(lines(task, data.samples, ["yes"] * 25)).keys()


def test_pictures_of_mme_are_those_of_their_subtask(tmp_path: Path) -> None:
    """A table whose ids do not name the subtask: two halves of different pairs are no pair."""
    asked = [("color", "0.png", "Is it red?"), ("count", "0.png", "Is there one?"), ("count", "1.png", "Is it one?"),
             ("count", "1.png", "Are they two?"), ("posters", "posters/0.png", "Is it a?")]  # fmt: skip
    table = {"category": [one[0] for one in asked], "question_id": [one[1] for one in asked],
             "question": [one[2] for one in asked], "answer": ["Yes"] * 5,
             "image": [{"bytes": png(1)}] * 5}  # fmt: skip
    parquet(tmp_path / "mme/a.parquet", table)
    task = TASKS["mme"]()
    data = load(task, tmp_path)
    assert [one.group for one in data.samples] == ["color/0.png", "count/0.png", *["count/1.png"] * 2, "posters/0.png"]
    assert list(task.units(lines(task, data.samples, ["yes"] * 5))) == ["count/1.png"]


def test_mme_can_be_read_twice(tmp_path: Path) -> None:
    task, data = mme(tmp_path)
    assert [one.id for one in load(task, tmp_path).samples] == [one.id for one in data.samples]
    assert len(load(task, tmp_path, limit=3).samples) == 4


# -- the harness ------------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("loaded_once")


def run(root: Path, *more: str) -> tuple[int, dict[str, Any]]:
    out = root / "out"
    options = ["--method", "none", "--max-new-tokens", "1", "--data", str(root), "--out", str(out)]
    status = main(["--task", "mmbench", *options, *more])
    return status, json.loads((out / "mmbench/none/summary.json").read_text())


def test_a_picture_that_cannot_be_decoded_takes_its_question_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = circular_rows(3, options=2)
    broken = b64(jpeg(size=(200, 200))[:300])
    for row in rows:
        row["image"] = {"1000001": broken, "3": broken}.get(row["index"], row["image"])
    loaded(tmp_path, rows)
    status, summary = run(tmp_path)
    assert status == 0
    assert summary["questions"] == 6
    assert summary["incomplete"] == {"1": [1, 2], "3": [0, 2]}
    assert len(summary["units"]["above"]) == 1
    assert "mmbench/none: 2 of 3 units were left out of the score" in capsys.readouterr().err
    # The record goes on where it was, also when it was cut and when the picture was mended meanwhile.
    record = tmp_path / "out/mmbench/none/samples.jsonl"
    record.write_text("\n".join(record.read_text().splitlines()[:3]) + "\n")
    loaded(tmp_path, circular_rows(3, options=2))
    _, summary = run(tmp_path)
    assert summary["incomplete"] == {}
    assert len(summary["units"]["above"]) == 3
    assert "left out" not in capsys.readouterr().err


def test_a_record_from_before_counts_what_the_data_says(tmp_path: Path) -> None:
    """Lines without `members`, of a file whose references could not be read then."""
    rows = circular_rows(2, options=2)
    loaded(tmp_path, rows)
    run(tmp_path)
    record = tmp_path / "out/mmbench/none/samples.jsonl"
    old = [json.loads(line) for line in record.read_text().splitlines()]
    for line in old:
        del line["meta"]["members"]
    record.write_text("".join(json.dumps(line) + "\n" for line in old))
    loaded(tmp_path, rows[:3])
    _, summary = run(tmp_path)
    assert summary["incomplete"] == {"2": [1, 2]}
    assert len(summary["units"]["above"]) == 1


def test_nothing_whole_has_no_value(tmp_path: Path) -> None:
    loaded(tmp_path, circular_rows(2, options=2)[:2] + circular_rows(1, options=2, first=9)[1:])
    status, summary = run(tmp_path)
    assert (status, summary["value"], summary["standard_error"]) == (0, None, None)
    assert summary["incomplete"] == {"1": [1, 2], "2": [1, 2]}
