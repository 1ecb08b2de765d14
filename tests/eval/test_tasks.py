"""Every task on data in its official layout: prompts, perfect and empty answers, missing and damaged files."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demos.tiny_vlm.questions import SCORED as FAMILIES
from eval.tasks.base import Sample, Task
from eval.tasks.load import Data, load
from eval.tasks.registry import TASKS, task_class
from tests.eval.data import BUILDERS, HUB, jpeg, lines, parquet, put
from tests.eval.video_data import VIDEO_HUB, hub_clips
from vlmprune import VlmpruneError
from vlmprune.inputs.video import Clip

PROMPTS = json.loads((Path(__file__).parent / "prompts.json").read_text())
NO_FILES = {"scenes", "scenes-validation", "photographs", "scenes-wide", "photographs-wide", "clips", "easy-vqa"}
SCORED = [name for name in TASKS if name != "mmvet"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def loaded(name: str, root: Path, **options: Any) -> tuple[Task, Data]:
    if name in BUILDERS and not (root / name).exists():
        BUILDERS[name](root / name)
    task = TASKS[name]()
    return task, load(task, root, **{"limit": 8 if name in NO_FILES else None, **options})


def answered(task: Task, samples: list[Sample], give: Any) -> list[dict[str, Any]]:
    """Record lines as the harness writes them, through JSON."""
    rows = []
    for sample in samples:
        answer = give(sample)
        parsed = task.read(sample, answer)
        rows.append(
            {
                "id": sample.id,
                "group": sample.group or sample.id,
                "answer": answer,
                "parsed": parsed,
                "score": task.score(sample, parsed),
                "meta": sample.meta,
            }
        )
    return json.loads(json.dumps(rows))


def perfect(sample: Sample) -> str:
    truth = sample.truth
    if isinstance(truth, list) and truth and isinstance(truth[0], int | float):
        return str(truth)
    return " and ".join(truth) if "objects" in sample.meta else truth[0] if isinstance(truth, list) else truth


def frames_of(sample: Sample) -> list[Any]:
    shown = sample.load(2)
    return shown.frames if isinstance(shown, Clip) else [shown]


def test_there_is_data_for_every_task() -> None:
    assert set(BUILDERS) | NO_FILES == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_these(name: str, tmp_path: Path) -> None:
    _, data = loaded(name, tmp_path)
    assert data.bad == []
    assert [[one.id, one.prompt] for one in data.samples] == PROMPTS[name]


@pytest.mark.parametrize("name", TASKS)
def test_pictures_open(name: str, tmp_path: Path) -> None:
    _, data = loaded(name, tmp_path)
    assert {frame.mode for one in data.samples for frame in frames_of(one)} == {"RGB"}


@pytest.mark.parametrize("name", SCORED)
def test_right_answers_score_one_and_empty_ones_nothing(name: str, tmp_path: Path) -> None:
    task, data = loaded(name, tmp_path)
    # POPE's script reads as yes what does not say no, so an always empty model has every yes right and every no wrong.
    nothing = 2 / 3 if name == "pope" else 0.0
    if getattr(task, "draws", False):  # a letter where the script can read none
        drawn = [random.Random(one.id).choice(sorted(one.meta["options"])) == one.truth for one in data.samples]
        nothing = sum(drawn) / len(drawn)
    for give, expected in ((perfect, 1.0), (lambda sample: "", nothing)):
        rows = answered(task, data.samples, give)
        assert task.metrics(rows)[task.main] == pytest.approx(expected)


@pytest.mark.parametrize("name", SCORED)
def test_units_add_up_to_the_main_metric(name: str, tmp_path: Path) -> None:
    """Standard errors and significance come from the units, so they must be the number in the table."""
    task, data = loaded(name, tmp_path)
    for give in (
        perfect,
        lambda sample: "yes",
        lambda sample: "A",
        lambda sample: perfect(sample) if "1" in sample.id else "?",
    ):
        rows = answered(task, data.samples, give)
        units = task.units(rows).values()
        below = sum(unit[1] for unit in units)
        assert task.metrics(rows)[task.main] == pytest.approx(sum(unit[0] for unit in units) / below if below else 0.0)


@pytest.mark.parametrize("name", sorted(set(TASKS) - NO_FILES))
def test_missing_data_says_which_file_to_put_where(name: str, tmp_path: Path) -> None:
    for file in TASKS[name].files:
        if "*" in file and name not in ("detailcaps", "mmstar"):
            continue
        root = tmp_path / re.sub(r"\W", "_", file)
        loaded(name, root)
        target = root / name / file.rstrip("/")
        for one in target.parent.glob(target.name) if "*" not in file else (root / name).glob("**/*.parquet"):
            one.rename(one.with_name("elsewhere"))
        with pytest.raises(VlmpruneError) as said:
            loaded(name, root)
        message = str(said.value)
        assert file.rstrip("/") in message
        assert "put it there" in message
        assert message.count("\n") == 0


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of parquet files in the Hub's columns, found locally and read through `datasets` as the Hub is."""
    task = TASKS[name]()
    assert task.hub is not None
    parquet(tmp_path / name / f"data/{task.hub.split}-00000-of-00001.parquet", HUB[name])
    if name in VIDEO_HUB:
        hub_clips(tmp_path / name)
        hub_clips(tmp_path / "nothing" / name)
    locally = load(task, tmp_path)
    assert locally.bad == []
    assert locally.samples and all(frames_of(one)[0].size == (40, 30) for one in locally.samples)
    monkeypatch.setattr(TASKS[name], "hub", replace(task.hub, id=str(tmp_path / name), config=None))
    remote = load(TASKS[name](), tmp_path / "nothing", hub=True)
    assert [(one.id, one.prompt, one.truth) for one in remote.samples] == [
        (one.id, one.prompt, one.truth) for one in locally.samples
    ]


def test_gqa_on_the_hub_joins_two_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.tasks import gqa

    questions = {"id": ["1", "2"], "imageId": ["n1", "gone"], "question": ["?", "?"], "answer": ["yes", "no"]}
    pictures = {"id": ["n1"], "image": [{"bytes": jpeg(), "path": None}]}
    parquet(tmp_path / "questions/test-0.parquet", questions)
    parquet(tmp_path / "pictures/test-0.parquet", pictures)
    original = gqa.hub_table

    def local(task: str, name: str, config: str, split: str) -> Any:
        return original(task, str(tmp_path / ("pictures" if "images" in config else "questions")), None, "test")

    monkeypatch.setattr(gqa, "hub_table", local)
    data = load(TASKS["gqa"](), tmp_path, hub=True)
    assert [one.id for one in data.samples] == ["1"]
    assert data.samples[0].load_image().size == (40, 30)
    assert [bad.why for bad in data.bad] == ["there is no image 'gone'"]


def test_the_hub_out_of_reach_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no route")))
    with pytest.raises(VlmpruneError, match=r"cannot read 'lmms-lab/POPE' from the Hub \(no route\)"):
        load(TASKS["pope"](), tmp_path, hub=True)


class TestBadData:
    def bad(self, root: Path, name: str = "vizwiz", **options: Any) -> tuple[list[str], list[str]]:
        data = load(TASKS[name](), root, **options)
        return [one.id for one in data.samples], [f"{bad.where}: {bad.why}" for bad in data.bad]

    def test_rows_of_every_kind_of_wrong(self, tmp_path: Path) -> None:
        good = {"image": "a.jpg", "question": "What?", "answers": [{"answer": "can"}]}
        rows = [
            good,
            good,
            {"image": "b.jpg", "answers": good["answers"]},
            good | {"image": 3},
            good | {"question": "  "},
            good | {"answers": "can"},
            good | {"answers": []},
            good | {"answers": ["can"]},
            None,
            [1],
            good | {"image": "z.jpg"},
        ]
        put(tmp_path / "vizwiz", "val.json", rows)
        put(tmp_path / "vizwiz", "val/a.jpg", jpeg())
        ids, bad = self.bad(tmp_path)
        assert ids == ["a.jpg", "z.jpg"]
        assert bad == [
            "a.jpg: the id was used by an earlier question; the first one counts",
            "val.json 2: the field 'question' is missing",
            "val.json 3: the field 'image' is of type int, not str",
            "val.json 4: the field 'question' is empty",
            "val.json 5: the field 'answers' is of type str, not list",
            "val.json 6: the field 'answers' is empty",
            "val.json 7: the row is of type str, not a table of fields",
            "val.json 8: the row is of type NoneType, not a table of fields",
            "val.json 9: the row is of type list, not a table of fields",
        ]
        with pytest.raises(VlmpruneError, match=r"has a fault at a\.jpg: the id .* leave out --strict"):
            self.bad(tmp_path, strict=True)

    @pytest.mark.parametrize("content", ["", "{", "[]", "3", b"\xff\xfe\x00"])
    def test_files_of_every_kind_of_wrong(self, tmp_path: Path, content: Any) -> None:
        put(tmp_path / "vizwiz", "val.json", content)
        (tmp_path / "vizwiz/val").mkdir()
        ids, bad = self.bad(tmp_path)
        assert ids == []
        assert len(bad) == 1
        assert bad[0].startswith("vizwiz: ")

    def test_a_broken_line_costs_that_line(self, tmp_path: Path) -> None:
        BUILDERS["pope"](tmp_path / "pope")
        row = {"question_id": 9, "image": "i.jpg", "text": "Is there?", "label": "maybe"}
        put(tmp_path / "pope", "coco_pope_random.json", '{"question_id": \n' + lines(row))
        put(tmp_path / "pope", "coco_pope_popular.json", "")
        ids, bad = self.bad(tmp_path, "pope")
        assert ids == ["adversarial/1", "adversarial/2"]
        assert [one.split(":")[0] for one in bad] == [
            "coco_pope_random.json, line 1",
            "coco_pope_random.json 1",
            "coco_pope_popular.json",
        ]

    def test_a_parquet_file_that_is_none(self, tmp_path: Path) -> None:
        put(tmp_path / "docvqa", "a.parquet", "no parquet")
        ids, bad = self.bad(tmp_path, "docvqa")
        assert ids == []
        assert "cannot be read as parquet" in bad[0]
        put(tmp_path / "docvqa", "a.parquet", "")
        assert self.bad(tmp_path, "docvqa")[1] == ["row: a.parquet is empty"]

    def test_pictures_that_are_none_say_so(self, tmp_path: Path) -> None:
        BUILDERS["vizwiz"](tmp_path / "vizwiz")
        put(tmp_path / "vizwiz", "val/a.jpg", jpeg(size=(400, 300))[:2000])
        (tmp_path / "vizwiz/val/b.jpg").unlink()
        truncated, missing = load(TASKS["vizwiz"](), tmp_path).samples
        with pytest.raises(VlmpruneError, match="cannot be read as an image"):
            truncated.load_image()
        with pytest.raises(VlmpruneError, match="there is no file"):
            missing.load_image()


def test_mme_total_is_the_official_one(tmp_path: Path) -> None:
    """One of two right in every subtask: accuracy 50, accuracy+ 0 in each of 10 + 4."""
    task, data = loaded("mme", tmp_path)
    found = task.metrics(answered(task, data.samples, lambda sample: "Yes"))
    assert (found["perception"], found["cognition"], found["score_share"]) == (500.0, 200.0, 0.25)


@pytest.mark.parametrize(("reading", "numbers"), [("official", (0.5, 1.0)), ("person", (0.0, 0.0))])
def test_pope_reports_both_readings(tmp_path: Path, reading: str, numbers: tuple[float, float]) -> None:
    _, data = loaded("pope", tmp_path)
    task = TASKS["pope"](reading=reading)
    found = task.metrics(answered(task, data.samples, lambda sample: ""))
    assert (found["accuracy"], found["yes_ratio"]) == numbers
    assert (found["person_accuracy"], found["person_yes_ratio"], found["unreadable"]) == (0.0, 0.0, 1.0)
    assert (found["official_accuracy"], found["official_yes_ratio"]) == (0.5, 1.0)


def test_mmbench_makes_rotations_only_where_the_file_has_none(tmp_path: Path) -> None:
    _, data = loaded("mmbench", tmp_path)
    assert [one.id for one in data.samples] == ["1", "1000001", "2000001", "2", "1000002"]
    assert [one.truth for one in data.samples] == ["B", "A", "C", "A", "B"]
    path = tmp_path / "mmbench/mmbench_dev_en_20231003.tsv"
    path.write_text(path.read_text().replace("\n2\t", "\n1000001\t"))
    assert [one.id for one in load(TASKS["mmbench"](), tmp_path).samples] == ["1", "1000001"]


@pytest.mark.parametrize("name", ["scenes", "scenes-validation"])
def test_scenes_are_as_many_as_promised_and_no_picture_comes_twice(name: str, tmp_path: Path) -> None:
    samples = load(TASKS[name](), tmp_path).samples
    assert len({one.group for one in samples}) == len(samples)
    assert len(samples) >= 2000
    families = {one.meta["family"] for one in samples[:8]}
    assert len(families) == 8
    assert len({one.id for one in samples}) == len({one.id.split("/")[1] for one in samples}) == len(samples)


def test_the_worlds_differ_in_what_they_show_and_not_in_what_they_ask(tmp_path: Path) -> None:
    for name, side in (("photographs", 112), ("scenes-wide", 224), ("photographs-wide", 224)):
        task = TASKS[name]()
        task.each = 2  # type: ignore[misc]  # of this task alone
        samples = load(task, tmp_path).samples
        assert {one.load_image().size for one in samples} == {(side, side)}
        assert {one.meta["family"] for one in samples} == set(FAMILIES) and len(samples) == 2 * len(FAMILIES)


def test_clips_are_a_thousand_and_show_as_many_frames_as_asked_for(tmp_path: Path) -> None:
    samples = load(TASKS["clips"](), tmp_path).samples
    assert len(samples) == len({one.group for one in samples}) == 1000
    assert len({one.meta["family"] for one in samples[:8]}) == 8
    for asked, shown in ((None, 8), (8, 8), (3, 3)):
        clip = samples[0].load(asked)
        assert isinstance(clip, Clip) and len(clip.frames) == shown and clip.frames[0].size == (112, 112)


def test_an_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(VlmpruneError, match=r"no task 'gqaa'; did you mean 'gqa'\?"):
        task_class("gqaa")
