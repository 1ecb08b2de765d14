"""Data as people have it: folders as `hf download` leaves them, official zips, VLMEvalKit's TSVs, every encoding."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import tarfile
import tracemalloc
import zipfile
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from eval.tasks import archives
from eval.tasks.base import Sample
from eval.tasks.load import Data, load
from eval.tasks.readers import BadRow, from_base64, read_text, several
from eval.tasks.registry import TASKS
from tests.eval.data import BUILDERS, HUB, SYNONYMS, TSV_TASKS, jpeg, lines, parquet, put, tsv
from tests.eval.video_data import VIDEO_HUB, hub_clips
from tests.support.grid import few
from vlmprune import VlmpruneError
from vlmprune.inputs.video import Clip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def asked(samples: list[Sample]) -> list[tuple[str, Any, str]]:
    shown = [one.load(2) for one in samples]
    sizes = [one.frames[0].size if isinstance(one, Clip) else one.size for one in shown]
    return [(one.prompt, one.truth, str(size)) for one, size in zip(samples, sizes, strict=True)]


def official(name: str, root: Path) -> Data:
    BUILDERS[name](root / name)
    return load(TASKS[name](), root)


# -- three forms ------------------------------------------------------------------------------------------------------

ARCHIVED = sorted(set(BUILDERS) - {"detailcaps", "mmstar"})  # these have no files but parquet


@pytest.mark.parametrize(("name", "form"), few(list(product(ARCHIVED, ("one", "each"))), 9))
def test_an_official_zip_is_read_where_it_is(name: str, form: str, tmp_path: Path) -> None:
    """All in one archive below a folder of its own, or an archive for each thing at the top, as sites offer them."""
    plain = official(name, tmp_path / "plain")
    source, target = tmp_path / "plain" / name, tmp_path / "zipped" / name
    target.mkdir(parents=True)
    for top in [source] if form == "one" else sorted(source.iterdir()):
        with zipfile.ZipFile(target / f"{top.name}.zip", "w") as archive:
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                inner = path.relative_to(source)
                archive.write(path, Path("Release 1.2", inner) if form == "one" else inner)
            archive.writestr("__MACOSX/._" + top.name, b"resource fork")
    zipped = load(TASKS[name](), tmp_path / "zipped")
    assert zipped.bad == plain.bad == []
    assert [one.id for one in zipped.samples] == [one.id for one in plain.samples]
    assert asked(zipped.samples) == asked(plain.samples)
    if form == "one":
        (archive_path,) = target.iterdir()
        task = TASKS[name]()
        named = archive_path.rename(tmp_path / "download.zip")
        if name == "did":
            put(tmp_path / "elsewhere" / name, "synonyms.txt", SYNONYMS)
        assert asked(load(task, tmp_path / "elsewhere", dataset=str(named)).samples) == asked(plain.samples)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("vizwiz", "tar"), *few(list(product(ARCHIVED, ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"))), 45)],
)
def test_a_tar_is_read_as_a_zip_is(name: str, ending: str, tmp_path: Path) -> None:
    plain = official(name, tmp_path / "plain")
    source, target = tmp_path / "plain" / name, tmp_path / "tar" / name
    target.mkdir(parents=True)
    for top in sorted(source.iterdir()):
        packed = "" if ending == "tar" else ending.removeprefix("tar.").replace("tgz", "gz")
        with tarfile.open(target / f"{top.name}.{ending}", f"w:{packed}") as archive:
            archive.add(top, f"./{top.name}")
    found = load(TASKS[name](), tmp_path / "tar")
    assert found.bad == []
    assert [one.id for one in found.samples] == [one.id for one in plain.samples]
    assert asked(found.samples) == asked(plain.samples)


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, to: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, to
    return made


def test_links_devices_and_ways_out_of_a_tar_lead_nowhere(tmp_path: Path) -> None:
    """Its images come from the archive or not at all."""
    BUILDERS["vizwiz"](tmp_path / "vizwiz")
    folder = tmp_path / "vizwiz"
    secret, good = tmp_path / "secret.jpg", (folder / "val" / "a.jpg").read_bytes()
    shutil.move(folder / "val" / "b.jpg", secret)
    with tarfile.open(folder / "val.tar", "w") as archive:
        archive.addfile(entry("../../val/a.jpg", size=len(good)), io.BytesIO(good))
        archive.addfile(entry("val/b.jpg", tarfile.SYMTYPE, to=str(secret)))
        archive.addfile(entry("val/b.jpg", tarfile.LNKTYPE, to="../../secret.jpg"))
        archive.addfile(entry("val/pipe", tarfile.FIFOTYPE))
        archive.addfile(entry("val/null", tarfile.CHRTYPE))
    shutil.rmtree(folder / "val")
    inside, outside = sorted(load(TASKS["vizwiz"](), tmp_path).samples, key=lambda one: str(one.image))
    assert inside.load_image().size == (40, 30)
    with pytest.raises(VlmpruneError, match=r"there is no file 'val/b\.jpg' in .*val\.tar"):
        outside.load_image()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.jpg", "vizwiz"]  # nothing was unpacked


def test_sizes_in_a_tar_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit for one, and 2 MB of zeros in a few KB where 1 MB is harmless."""
    with tarfile.open(tmp_path / "large.tar", "w") as archive:
        archive.addfile(entry("large.json", size=1000), io.BytesIO(bytes(1000)))
    monkeypatch.setattr(archives, "HARMLESS", 1 << 20)
    monkeypatch.setattr(archives, "LARGEST", 999)
    with pytest.raises(VlmpruneError, match=r"large\.json' would unpack to 1,000 bytes"):
        archives.ArchivePlace(tmp_path / "large.tar", PurePosixPath("large.json")).read_bytes()
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        archive.addfile(entry("zeros", size=2 << 20), io.BytesIO(bytes(2 << 20)))
    with pytest.raises(VlmpruneError, match=r"bomb\.tar\.gz' unpacks to more than 1,048,576 bytes"):
        archives.names_in(tmp_path / "bomb.tar.gz")


@pytest.mark.parametrize("name", few(ARCHIVED, 9))
def test_an_unpacked_archive_may_have_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    plain = official(name, tmp_path / "plain")
    (tmp_path / "deeper").mkdir()
    shutil.move(tmp_path / "plain" / name, tmp_path / "deeper" / name / "Dataset")
    found = load(TASKS[name](), tmp_path / "deeper")
    assert asked(found.samples) == [(one.prompt, one.truth, "(40, 30)") for one in plain.samples]


@pytest.mark.parametrize("name", few(TSV_TASKS, 5))
def test_a_tsv_of_vlmevalkit_asks_what_the_official_files_ask(name: str, tmp_path: Path) -> None:
    plain = official(name, tmp_path / "plain")
    called, content = tsv(name)
    put(tmp_path / "kit" / name, f"{called}.tsv", content)
    given = {} if name != "vqav2" else {"dataset": str(tmp_path / "kit/vqav2/vqav2.tsv")}  # the kit has none of it
    found = load(TASKS[name](), tmp_path / "kit", **given)
    assert found.bad == []
    assert asked(found.samples) == asked(plain.samples)
    groups = [len({one.group for one in data.samples}) for data in (plain, found)]
    if name != "vizwiz" and name != "ocrbench":  # whose fixtures have an image for each question
        assert groups[0] == groups[1]
    if given:
        return
    # By its name, wherever the kit or the user put it.
    for place in (".", name, "LMUData", "../home/LMUData"):
        put(tmp_path / "named" / place, f"{called}.tsv", content)
        assert asked(load(TASKS[name](), tmp_path / "named", dataset=called).samples) == asked(plain.samples)
        (tmp_path / "named" / place / f"{called}.tsv").unlink()


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_vlmevalkits_one_table_of_refcoco_is_read_by_its_splits(name: str, tmp_path: Path) -> None:
    """Its box in pixels, or in fractions of the image; its own words; the rows of other splits are left alone."""
    called = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}[name]
    picture = base64.b64encode(jpeg()).decode()
    rows = [
        ["0", picture, "Where is the cat?", "[0.25, 0.5, 0.5, 1.0]", "40", "30", f"{called} val", "", "", "", ""],
        ["1", picture, "Where is the dog?", "", "40", "30", f"{called} val", "1", "2", "3.5", "4"],
        ["0", picture, "Where is the cow?", "[0, 0, 1, 1]", "40", "30", f"{called} testA", "", "", "", ""],
        ["2", picture, "Where is it?", "none", "40", "30", f"{called} val", "", "", "", ""],
        ["3", picture, "Where is he?", "[0, 0, 1, 1]", "", "30", f"{called} val", "", "", "", ""],
    ]
    heading = ["index", "image", "question", "answer", "width", "height", "category"]
    heading += [f"bbox_{side}" for side in ("x1", "y1", "x2", "y2")]
    table = "".join("\t".join(cells) + "\n" for cells in [heading, *rows])
    put(tmp_path / name, "RefCOCO.tsv", table)
    found = load(TASKS[name](), tmp_path)
    assert [(one.id, one.prompt, one.truth) for one in found.samples] == [
        (f"{called}_val_0", "Where is the cat?", [10.0, 15.0, 20.0, 30.0]),
        (f"{called}_val_1", "Where is the dog?", [1.0, 2.0, 3.5, 4.0]),
    ]
    assert [one.load_image().size for one in found.samples] == [(40, 30)] * 2
    assert len({one.group for one in found.samples}) == 1
    assert [one.where for one in found.bad] == ["RefCOCO.tsv 3", "RefCOCO.tsv 4"]
    assert TASKS[name]().score(found.samples[0], [10, 15, 20, 29]) == 1


def refcoco(tmp_path: Path, rows: list[tuple[str, str, str]]) -> Data:
    """A table of rows of an index, an image and a split."""
    told = "What?\t[0, 0, 1, 1]\t40\t30"
    table = [f"{index}\t{image}\t{told}\tRefCOCO {split}\n" for index, image, split in rows]
    heading = "index\timage\tquestion\tanswer\twidth\theight\tcategory\n"
    put(tmp_path / "refcoco", "RefCOCO.tsv", heading + "".join(table))
    return load(TASKS["refcoco"](), tmp_path)


def test_of_vlmevalkits_one_table_of_refcoco_only_what_is_asked_stays_in_memory(tmp_path: Path) -> None:
    """It has 4 GB, of which a fifth is asked about."""
    image = base64.b64encode(bytes(1 << 20)).decode()
    rows = [(f"{at}", image, "val" if at == 30 else "testA") for at in range(40)]
    refcoco(tmp_path, rows[:1])  # imports
    tracemalloc.start()
    assert len(refcoco(tmp_path, [*rows, ("40", "30", "val")]).samples) == 2
    tracemalloc.reset_peak()
    load(TASKS["refcoco"](), tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_rows_of_two_splits_that_share_an_index_keep_their_images(tmp_path: Path) -> None:
    """And an image is found before and behind the rows that refer to it."""
    small, large = (base64.b64encode(jpeg(size=size)).decode() for size in ((20, 10), (40, 30)))
    rows = [("0", small, "testA"), ("0", large, "val"), ("1", "2", "val"), ("2", large, "val"), ("3", "2", "val")]
    found = refcoco(tmp_path, rows).samples
    assert [one.load_image().size for one in found] == [(40, 30)] * 4
    assert len({one.group for one in found}) == 1


def test_a_data_set_that_vlmevalkit_does_not_have_says_so(tmp_path: Path) -> None:
    for name in ("earthvqa", "detailcaps", "did"):
        put(tmp_path / name, "synonyms.txt", SYNONYMS)
        with pytest.raises(VlmpruneError, match=r"no data set 'EarthVQA' .*VLMEvalKit has no file of it"):
            load(TASKS[name](), tmp_path, dataset="EarthVQA")
    put(tmp_path, "EarthVQA.tsv", "index\timage\n")
    with pytest.raises(VlmpruneError, match=r"'earthvqa' reads no TSV, since VLMEvalKit has none of it, and 'EarthVQ"):
        load(TASKS["earthvqa"](), tmp_path, dataset=str(tmp_path / "EarthVQA.tsv"))


def hub_rows(name: str) -> dict[str, list[Any]]:
    known = {**HUB, "refcoco+": HUB["refcoco"], "refcocog": HUB["refcoco"]}
    if name == "mmstar":
        question = ["Which?\nOptions: A: left, B: right, C: both, D: none"]
        return {"index": [0], "question": question, "answer": ["B"], "category": ["c"], "image": HUB["pope"]["image"]}
    if name == "detailcaps":
        return {"GT_Caption_GPT4O": ["A man walks a dog."], "image": HUB["pope"]["image"]}
    return known[name]


def renamed(table: dict[str, list[Any]], text: str) -> dict[str, list[Any]]:
    """The same table with other words in its question or caption."""
    column = "question" if "question" in table else "answer" if "file_name" in table else "GT_Caption_GPT4O"
    cells = enumerate(table[column])
    return table | {column: [[f"{text} cup"] if isinstance(cell, list) else f"{text}?{'!' * at}" for at, cell in cells]}


# Those whose table on the Hub is one; of MVBench's twenty a download has the JSON files.
WITH_HUB = sorted(name for name, task in TASKS.items() if task.hub is not None and name not in ("gqa", "mvbench"))


@pytest.mark.parametrize(("name", "layout"), few(list(product(WITH_HUB, ("as it is", "folders", "card"))), 11))
def test_a_folder_as_hf_download_leaves_it(name: str, layout: str, tmp_path: Path) -> None:
    """Read are the split and the configuration that the task names, and nothing of the others beside them."""
    task, folder = TASKS[name], tmp_path / name
    assert task.hub is not None
    config, split = task.hub.config, task.hub.split
    table = hub_rows(name)
    other_split = "train" if split != "train" else "test"
    everything = {(config, split): table, (config, other_split): renamed(table, "of another split")}
    if config is not None:
        everything[(f"{config}-other", split)] = renamed(table, "of another configuration")
    card = []
    for at, ((one, part), content) in enumerate(everything.items()):
        file = {
            "as it is": f"{one or 'data'}/{part}-00000-of-00001.parquet",
            "folders": f"{one or 'default'}/{part}/0000.parquet",
            "card": f"{at}.parquet",
        }[layout]
        parquet(folder / file, content)
        card.append(f"- config_name: {one or 'default'}\n  data_files:\n  - split: {part}\n    path: {file}\n")
    if layout == "card":
        put(folder, "README.md", f"---\nlicense: mit\nconfigs:\n{''.join(card)}---\n# Data\n")
    put(folder, ".cache/huggingface/download/data/x.parquet.incomplete", "half")
    parquet(folder / f".cache/huggingface/{split}-00000-of-00001.parquet", renamed(table, "of a cache"))
    if name == "detailcaps":
        put(folder, "synonyms.txt", SYNONYMS)
    parquet(tmp_path / "alone" / name / "a.parquet", table)
    if name == "detailcaps":
        put(tmp_path / "alone" / name, "synonyms.txt", SYNONYMS)
    if name in VIDEO_HUB:
        hub_clips(folder)
        hub_clips(tmp_path / "alone" / name)
    alone = load(task(), tmp_path / "alone")
    found = load(task(), tmp_path)
    assert found.bad == alone.bad == []
    assert asked(found.samples) == asked(alone.samples)
    assert len(found.samples) > 0
    other = load(task(), tmp_path, split=other_split)
    assert other.bad == []
    if name != "detailcaps":  # whose prompt is always the same
        assert all("of another split" in one.prompt for one in other.samples)
    if config is not None:
        (one, *_) = load(task(), tmp_path, config=f"{config}-other").samples
        assert "of another configuration" in one.prompt


def test_gqas_two_tables_of_a_download(tmp_path: Path) -> None:
    questions = {"id": ["1", "2"], "imageId": ["n1", "gone"], "question": ["?", "?"], "answer": ["yes", "no"]}
    images = {"id": ["n1"], "image": [{"bytes": jpeg(), "path": None}]}
    for split in ("testdev", "train"):
        parquet(tmp_path / f"gqa/{split}_balanced_instructions/{split}-00000-of-00001.parquet", questions)
        parquet(tmp_path / f"gqa/{split}_balanced_images/{split}-00000-of-00001.parquet", images)
    data = load(TASKS["gqa"](), tmp_path)
    assert [one.id for one in data.samples] == ["1"]
    assert data.samples[0].load_image().size == (40, 30)
    assert [bad.why for bad in data.bad] == ["there is no image 'gone'"]
    other = load(TASKS["gqa"](), tmp_path, config="train_balanced_instructions", split="train")
    assert [one.id for one in other.samples] == ["1"]
    shutil.rmtree(tmp_path / "gqa/testdev_balanced_images")
    with pytest.raises(VlmpruneError, match="finds no images for its questions"):
        load(TASKS["gqa"](), tmp_path)


def test_the_cache_of_the_hub_is_a_folder_too(tmp_path: Path) -> None:
    cached = tmp_path / "datasets--lmms-lab--MMVet"
    for commit, text in (("aaaa", "old"), ("bbbb", "new")):
        parquet(cached / f"snapshots/{commit}/data/test-00000-of-00001.parquet", renamed(HUB["mmvet"], text))
    put(cached, "refs/main", "bbbb")
    (one,) = load(TASKS["mmvet"](), tmp_path, dataset=str(cached)).samples
    assert one.prompt == "new?"


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        (["cn/dev-00000-of-00001"], {}, "finds no configuration 'en' in its folder, which has 'cn'; name one with"),
        (["en/test-00000-of-00001"], {}, "finds no split 'dev' in its folder, which has 'test'; name one with --split"),
        (["en/dev-00000-of-00001"], {"split": "test"}, "finds no split 'test' in its folder, which has 'dev'"),
        (["en/dev-00000-of-00001"], {"config": "cc"}, "finds no configuration 'cc' in its folder, which has 'en'"),
        (["a"], {"split": "dev"}, "finds no split 'dev' in its folder, which has no name of one"),
        ([], {"split": "dev"}, "--split chooses among parquet files or on the Hub"),
        ([], {"dataset": "MMBench_DEV_EN"}, "There is no MMBench_DEV_EN.tsv in"),
        ([], {"dataset": "./nowhere"}, "There is no data set './nowhere' for the task 'mmbench'; give a folder"),
    ],
)
def test_what_is_not_there_is_never_replaced(
    files: list[str], given: dict[str, str], said: str, tmp_path: Path
) -> None:
    for file in files:
        parquet(tmp_path / f"mmbench/{file}.parquet", HUB["mmbench"])
    with pytest.raises(VlmpruneError) as error:
        load(TASKS["mmbench"](), tmp_path, **given)
    assert said in str(error.value)


@pytest.mark.parametrize("split", few(["val", "dev", "validation"], 3))
def test_splits_have_other_names(split: str, tmp_path: Path) -> None:
    for one in (split, "train", "test"):
        parquet(tmp_path / f"docvqa/DocVQA/{one}-00000-of-00001.parquet", renamed(HUB["docvqa"], one))
    (sample,) = load(TASKS["docvqa"](), tmp_path).samples
    assert sample.prompt.startswith(f"{split}?")


def test_a_shard_that_was_not_downloaded_is_named(tmp_path: Path) -> None:
    for number in (0, 3):
        table = HUB["mmvet"] | {"question_id": [f"v1_{number}"]}
        parquet(tmp_path / f"mmvet/data/test-{number:05}-of-00004.parquet", table)
    data = load(TASKS["mmvet"](), tmp_path)
    assert [one.id for one in data.samples] == ["v1_0", "v1_3"]
    assert [bad.why for bad in data.bad] == ["2 of its 4 parquet files are not there (00001, 00002)"]


def test_the_first_of_several_tsvs_and_the_one_that_is_named(tmp_path: Path) -> None:
    content = tsv("mmbench")[1]
    for name in ("MMBench_DEV_EN", "MMBench_DEV_CN", "other"):
        put(tmp_path / "mmbench", f"{name}.tsv", content.replace("What is it?", f"{name}?"))
    chinese, cases = "MMBench_DEV_CN", [(None, "MMBench_DEV_EN"), ("other.tsv", "other")]
    for dataset, name in (*cases, (chinese, chinese), (chinese.lower(), chinese)):
        data = load(TASKS["mmbench"](), tmp_path, dataset=dataset)
        assert data.samples[0].prompt.startswith(f"{name}?")
        assert data.source == f"{name}.tsv"


def test_images_beside_a_tsv(tmp_path: Path) -> None:
    rows = "index\tquestion\tanswer\timage_path\n1\tWhat?\tcat\ta/1.jpg\n2\tWhat?\tcat\tgone.jpg\n"
    put(tmp_path, "gqa/GQA_TestDev_Balanced.tsv", rows)
    put(tmp_path, "gqa/images/GQA_TestDev_Balanced/a/1.jpg", jpeg())
    data = load(TASKS["gqa"](), tmp_path)
    assert [one.load_image().size for one in data.samples] == [(40, 30)]
    assert [bad.why for bad in data.bad] == ["there is no image 'gone.jpg' beside GQA_TestDev_Balanced.tsv"]


def test_options_with_an_empty_cell_keep_their_letters(tmp_path: Path) -> None:
    """C is right, and it is not the second of those that are left."""
    table = "index\tquestion\tA\tB\tC\tD\tanswer\tcategory\timage\n" + "\t".join(
        ["1", "Which?", "cat", "", "dog", "cow", "C", "c", base64.b64encode(jpeg()).decode()]
    )
    for name, called in (("mmbench", "MMBench_DEV_EN"), ("seed", "SEEDBench_IMG"), ("ai2d", "AI2D_TEST"),
                         ("scienceqa", "ScienceQA_TEST"), ("mmstar", "MMStar")):  # fmt: skip
        put(tmp_path / name, f"{called}.tsv", table + "\n")
        first = load(TASKS[name](), tmp_path).samples[0]
        assert first.truth == "C"
        assert "A. cat\nC. dog\nD. cow" in first.prompt
    choices = {"question": ["?"], "options": [["cat", "", "dog"]], "answer": ["2"], "image": HUB["ai2d"]["image"]}
    parquet(tmp_path / "other/ai2d/a.parquet", choices)
    (one,) = load(TASKS["ai2d"](), tmp_path / "other").samples
    assert (one.truth, "A. cat\nC. dog\n" in one.prompt) == ("C", True)


# -- encodings --------------------------------------------------------------------------------------------------------

ENCODINGS = {
    "utf-8": "utf-8", "utf-8 with a mark": "utf-8-sig", "utf-16": "utf-16", "utf-16 little": "utf-16-le",
    "utf-16 big": "utf-16-be", "utf-32": "utf-32",
}  # fmt: skip


@pytest.mark.parametrize(("name", "encoding"), few(list(product(ARCHIVED, ENCODINGS)), 25))
def test_texts_in_every_encoding(name: str, encoding: str, tmp_path: Path) -> None:
    """None loses a row and no mark enters a prompt."""
    plain = official(name, tmp_path)
    for path in (tmp_path / name).rglob("*"):
        if path.suffix in (".json", ".jsonl", ".tsv", ".txt", ".csv"):
            path.write_bytes(path.read_text().replace("\n", "\r\n").encode(ENCODINGS[encoding]))
    found = load(TASKS[name](), tmp_path)
    assert found.bad == []
    assert [(one.prompt, one.truth) for one in found.samples] == [(one.prompt, one.truth) for one in plain.samples]
    assert not any("\ufeff" in one.prompt or "\r" in one.prompt for one in found.samples)


def test_other_encodings_are_one_sentence(tmp_path: Path) -> None:
    put(tmp_path, "a.json", '["caf\u00e9"]'.encode("latin-1"))
    with pytest.raises(BadRow, match=r"a\.json is not UTF-8 text"):
        read_text(tmp_path / "a.json")
    put(tmp_path, "mmbench/MMBench_DEV_EN.tsv", tsv("mmbench")[1].encode() + "3\tcaf\u00e9".encode("latin-1") + b"\n")
    data = load(TASKS["mmbench"](), tmp_path)
    assert len(data.samples) == 5 or data.samples == []
    assert "is not UTF-8 text" in data.bad[-1].why


@pytest.mark.parametrize("size", few(range(40, 46), 6))
def test_images_in_base64_of_every_kind(size: int, tmp_path: Path) -> None:
    content = jpeg(size=(size, 30)) + bytes(range(248, 256)) + b"\xff" * (size - 40)
    plain = base64.b64encode(content).decode()
    forms = [
        plain, plain.rstrip("="), base64.urlsafe_b64encode(content).decode(), "data:image/jpeg;base64," + plain,
        "data:image/png;charset=utf-8;base64," + plain, "DATA:;base64," + plain, f" {plain} ", f"'{plain}'",
        "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)), plain.replace("=", "") + "\r\n",
        base64.encodebytes(content).decode(),
    ]  # fmt: skip
    assert {from_base64(form) for form in forms} == {content}
    for at, form in enumerate(forms):
        quoted = '"' + form.replace('"', '""') + '"'
        table = f"index\tquestion\tanswer\timage\n{at}\tWhat?\tcat\t{quoted}\n"
        put(tmp_path, "gqa/GQA_TestDev_Balanced.tsv", table)
        data = load(TASKS["gqa"](), tmp_path)
        assert data.bad == []
        assert data.samples[0].load_image().size == (size, 30)


@pytest.mark.parametrize("cell", ["!!!", "data:image/png;base64,\u00e9", "aGVsbG8\u00e9", "a"])
def test_what_is_not_base64_is_one_sentence(cell: str) -> None:
    with pytest.raises(BadRow, match="the field 'image' is not base64"):
        from_base64(cell)


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("cat", ["cat"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        ("['nokia' 'nokia'\n 'lg']", ["nokia", "nokia", "lg"]),  # as NumPy writes it
        ('["a", "b\\u00e9"]', ["a", "b\u00e9"]),
        ("[14, 2.5]", ["14", "2.5"]),
        ("[left]", ["[left]"]),
        ("[]", []),
        ("['a\\'b', 'c, d']", ["a'b", "c, d"]),
    ],
)
def test_lists_in_a_cell(cell: str, texts: list[str]) -> None:
    assert several(cell) == texts


# -- damaged ----------------------------------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("vizwiz", "val.json", POINTER, "val.json is a pointer of Git LFS, not the file itself"),
        ("mmbench", "MMBench_DEV_EN.tsv", POINTER, "is a pointer of Git LFS"),
        ("docvqa", "DocVQA/validation-00000-of-00001.parquet", POINTER, "is a pointer of Git LFS"),
        ("mmbench", "MMBench_DEV_EN.tsv", "", "MMBench_DEV_EN.tsv is empty"),
        ("mmbench", "MMBench_DEV_EN.tsv", "<html>Not found</html>\n", "is no table of columns separated by tabs"),
        ("mmbench", "MMBench_DEV_EN.tsv", "index\tanswer\n1\tA\tB\n", "the row has more cells than the heading"),
        ("mmbench", "MMBench_DEV_EN.tsv", "index\tanswer\nx\tA\n", "the field 'index' is 'x', no whole number"),
        ("mmbench", "MMBench_DEV_EN.tsv", "answer\timage\nA\tB\n", "the field 'index' is missing"),
        ("mmbench", "MMBench_DEV_EN.tsv", "index\timage\n1\t['AAAA','AAAA']\n", "holds 2 images"),
        ("vizwiz", "val.json", "[" * 100_000, "val.json is not JSON"),
        ("vizwiz", "val.json", "<html>Sign in</html>", "val.json is not JSON"),
        ("pope", "coco_pope_random.json", "[" * 100_000, "no JSON"),
        ("vizwiz", "v.zip", b"PK\x03\x04 half a zip", "is no whole zip file"),
        ("vizwiz", "v.tar", b"half a tar" * 100, "is no whole tar file"),
        ("vizwiz", "v.tar.gz", gzip.compress(bytes(4096), mtime=0)[:-9], "is no whole tar file"),
        ("vizwiz", "v.tgz", gzip.compress(b"no tar", mtime=0), "is no whole tar file"),
        ("vizwiz", "v.tar.xz", b"\xfd7zXZ\x00" + bytes(40), "is no whole tar file"),
        ("vizwiz", "v.tar.bz2", b"BZh9" + bytes(40), "is no whole tar file"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(name: str, file: str, content: Any, said: str, tmp_path: Path) -> None:
    BUILDERS[name](tmp_path / name)
    for path in (tmp_path / name).glob("*.tsv"):
        path.unlink()
    if file.endswith((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2")):
        (tmp_path / name / "val.json").unlink()
    put(tmp_path / name, file, content)
    try:
        data = load(TASKS[name](), tmp_path)
    except VlmpruneError as error:
        found = [str(error)]
    else:
        found = [bad.why for bad in data.bad]
    assert any(said in one for one in found), found
    assert all("\n" not in one for one in found)


@pytest.mark.parametrize("name", few([name for name in WITH_HUB if name not in VIDEO_HUB], 9))
def test_a_table_without_its_image_column(name: str, tmp_path: Path) -> None:
    table = {column: cells for column, cells in hub_rows(name).items() if column != "image"}
    parquet(tmp_path / name / "a.parquet", table)
    if name == "detailcaps":
        put(tmp_path / name, "synonyms.txt", SYNONYMS)
    data = load(TASKS[name](), tmp_path)
    assert data.samples == []
    assert {bad.why for bad in data.bad} == {"the field 'image' is missing"}


def test_a_zip_that_cannot_be_unpacked_costs_its_images(tmp_path: Path) -> None:
    BUILDERS["vizwiz"](tmp_path / "vizwiz")
    folder = tmp_path / "vizwiz"
    with zipfile.ZipFile(folder / "val.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((folder / "val").iterdir()):
            archive.write(path, f"val/{path.name}")
    shutil.rmtree(folder / "val")
    whole = bytearray((folder / "val.zip").read_bytes())
    at = whole.index(b"val/a.jpg") + len("val/a.jpg")
    whole[at : at + 40] = bytes(40)
    (folder / "val.zip").write_bytes(whole)
    damaged, good = load(TASKS["vizwiz"](), tmp_path).samples
    assert good.load_image().size == (40, 30)
    with pytest.raises(VlmpruneError, match=r"val/a\.jpg' cannot be unpacked"):
        damaged.load_image()


def test_two_archives_with_the_same_file_are_not_guessed(tmp_path: Path) -> None:
    BUILDERS["vizwiz"](tmp_path / "vizwiz")
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / "vizwiz" / name, "w") as archive:
            archive.write(tmp_path / "vizwiz/val.json", "val.json")
    (tmp_path / "vizwiz/val.json").unlink()
    with pytest.raises(VlmpruneError, match=r"finds 'val\.json' more than once .*leave one of them"):
        load(TASKS["vizwiz"](), tmp_path)


def test_a_line_separator_inside_a_text_is_no_new_line(tmp_path: Path) -> None:
    """JSON may hold U+2028, at which Python splits lines."""
    BUILDERS["pope"](tmp_path / "pope")
    row = {"question_id": 5, "image": "i.jpg", "text": "Is there\u2028a dog?", "label": "yes"}
    content = json.dumps(row, ensure_ascii=False) + "\n" + lines(row | {"question_id": 6})
    put(tmp_path / "pope", "coco_pope_random.json", content)
    data = load(TASKS["pope"](), tmp_path)
    assert data.bad == []
    assert len(data.samples) == 6
