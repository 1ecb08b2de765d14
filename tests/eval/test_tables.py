"""Standard errors, significance, tables and pictures, from summaries made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlmprune
from eval import grid, pages, plots, tables
from eval.worlds import __main__ as worlds
from tests.support.grid import only_full
from vlmprune.errors import VlmpruneError


def summary(method: str, keep: str | None, scores: list[float | None], **more: Any) -> dict[str, Any]:
    kept = 10 if keep is None else round(10 * float(keep))
    given = [one for one in scores if one is not None]
    return {
        "task": "toy", "method": method, "keep": keep, "model": "m", "backend": "b", "batch_size": 1,
        "questions": len(scores), "answered": len(given), "bad_count": 0, "bad": [], "main": "accuracy",
        "value": sum(given) / len(given), "standard_error": 0.1,
        "costs": {"visual_tokens": 10.0, "kept_tokens": kept, "lm_tokens": kept, "layer_avg_tokens": kept,
                  "prefill_flops": 1e6 * kept, "kv_bytes": 100 * kept,
                  "seconds": {"prefill": 0.01, "decode_a_token": 0.002, "total": 0.02}},
        "positions": {"rows": 2, "columns": 2, "kept_share": [1.0, 0.5, None, 0.0]},
        "data": {"ids_sha256": "x"}, "scores": scores,
        "units": {"ids_sha256": "x", "above": given, "below": None},
        "provenance": {"machine": "here", "commit": "0123456789abcdef", "dirty": False},
        **more,
    }  # fmt: skip


ROWS = [
    summary("none", None, [1, 1, 1, 0]),
    summary("downsample", "0.5", [1, 0, 0, 0]),
    summary("fastv", "0.5", [1, 1, 0, 1]),
]


def test_the_questions_that_downsampling_fails() -> None:
    """Right unpruned and wrong downsampled are the second and third; fastv gets one of them."""
    assert tables.where_downsampling_fails(ROWS[2], ROWS) == (0.5, 2)
    assert tables.where_downsampling_fails(ROWS[0], ROWS) is None
    assert tables.where_downsampling_fails(summary("fastv", "0.1", [1, 1, 0, 1]), ROWS) is None


def test_a_table() -> None:
    lines = tables.table(ROWS).splitlines()
    assert (
        lines[2] == "| none |  | 10.0 | 10.0 | 100.0% | 100.0% | 10.0 ms | 2.0 ms | 20.0 ms | 0.750 ± 0.100 |  |  |  |"
    )
    assert lines[4].startswith("| fastv | 0.5 | 5.0 | 5.0 | 50.0% | 50.0% |")
    # Two of four answers changed, one each way: about 0 ± 3.18 x sqrt(1/6), and no swap moves the sum further.
    assert lines[4].endswith("| +0.0 (-129.0 to +129.0) | 1.000 | 0.500 (n=2) |")
    assert "Missing from this table: small-alone, blind, random, uniform." in lines[-1]
    assert "4 questions" in lines[-1]


def test_a_table_measured_in_a_copy_without_its_history() -> None:
    """As `provenance` records it where git knows nothing."""
    row = summary("none", None, [1], provenance={"machine": "here", "commit": "unknown", "dirty": None})
    assert "commit: unknown." in tables.table([row])
    changed = summary("none", None, [1], provenance={"machine": "here", "commit": "0123456789abcdef", "dirty": True})
    assert "commit: 0123456789 with changes." in tables.table([changed])


def test_a_table_says_what_is_wrong_with_it() -> None:
    other = summary(
        "fastv", "0.5", [1, None], data={"ids_sha256": "y"}, bad_count=1, bad=[{"where": "q2", "why": "gone"}]
    )
    text = tables.table([ROWS[0], other | {"units": {"ids_sha256": "y", "above": [1.0], "below": None}}])
    assert "cannot be compared" in text
    assert "Up to 1 faults in the data" in text
    assert "q2: gone" in text
    assert tables.against(other | {"units": {"ids_sha256": "y", "above": [1.0], "below": None}}, ROWS[0]) is None


def test_an_overview_of_several_tasks() -> None:
    second = [row | {"task": "other"} for row in ROWS]
    lines = tables.overview(ROWS + second).splitlines()
    assert lines[0] == "| method | keep | toy | other | mean share of unpruned |"
    assert lines[-1] == "| fastv | 0.5 | 0.750 | 0.750 | 100.0% |"


def test_the_front() -> None:
    assert plots.front([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7)]) == [(1, 0.5), (2, 0.7), (3, 0.9)]


def test_the_command_writes_tables_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in ROWS:
        folder = tmp_path / f"toy/{row['method']}"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(row))
    assert tables.main([str(tmp_path)]) == 0
    assert (tmp_path / "tables.md").read_text() == capsys.readouterr().out
    names = {"toy-pareto-flops.png", "toy-pareto-time.png", "toy-positions.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10


@pytest.mark.parametrize("content", [None, "{"])
def test_no_records(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    assert tables.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_page_shows_what_the_committed_records_say() -> None:
    assert pages.main(["--check"]) == 0


def test_a_page_out_of_date_is_rewritten() -> None:
    good = (pages.ROOT / "eval/sinks.md").read_text()
    stale = good.replace("| none | 100.0% | 0.9", "| none | 100.0% | 1.9")
    assert stale != good
    assert pages.filled("eval/sinks.md", stale) == good
    unmarked = good.replace("<!-- table: sinks -->", "<!-- table: sink -->")
    with pytest.raises(
        VlmpruneError,
        match=r"^eval/sinks\.md has to mark each of these tables and texts once: existence, sinks, findings\.$",
    ):
        pages.filled("eval/sinks.md", unmarked)


def test_no_measured_number_can_be_changed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number with a point in a table or text is put back; the tables are made once, for speed."""
    for page in pages.PAGES:
        text = (pages.ROOT / page).read_text()
        made = {name: pages.made_of(page, name) for name in pages.PAGES[page]}
        monkeypatch.setattr(pages, "made_of", lambda _, name, made=made: made[name])
        for marks in pages.MARKED.finditer(text):
            for number in list(re.finditer(r"\d+\.\d+", marks[0]))[::7]:
                at = marks.start() + number.start()
                assert pages.filled(page, text[:at] + "8" + text[at:]) == text
        monkeypatch.undo()


def test_measured_numbers_stand_in_tables_and_texts_only() -> None:
    """In the pages of results, a number with a point outside of them is a setting, a version or arithmetic."""
    known = {"eval/sgl/README.md": {"0.9"}, "eval/captions/README.md": {"0.3"}, "eval/sinks.md": set()}
    for page, allowed in known.items():
        left = pages.MARKED.sub("", (pages.ROOT / page).read_text())
        left = re.sub(r"```.*?```|\(\.\.?/.*?\)", "", left, flags=re.DOTALL)
        assert set(re.findall(r"(?<![\w/])\d*\.\d+", left)) <= allowed, page


def test_the_grid_has_every_method_once() -> None:
    names = grid.settings(Path("x"), None, 1, ("scenes",)).methods
    methods = vlmprune.list_methods().items()
    assert set(names) >= {name for name, method in methods if not issubclass(method, vlmprune.CacheMethod)}
    assert len(set(names)) == len(names)


@only_full
def test_the_grid_on_a_few_questions(tmp_path: Path) -> None:
    arguments = ["--task", "scenes", "--limit", "2", "--batch-size", "2", "--out", str(tmp_path)]
    assert grid.main(arguments) == 0
    text = (tmp_path / "tables.md").read_text()
    rows = [line.split(" | ")[:2] for line in text.splitlines() if line.startswith("| ")]
    names = {(method.removeprefix("| "), keep) for method, keep in rows}
    assert {("none", ""), ("small-alone", ""), ("blind", ""), ("sgl+exit", "0.09"), ("sparsevlm", "0.18")} <= names
    assert "charged to every row" in text
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("**/samples.jsonl"))]
    assert grid.main(arguments) == 0  # nothing is left to answer
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("**/samples.jsonl"))] == written


def test_every_cell_has_its_questions_and_its_pair() -> None:
    made = [(c.pair, c.task, c.model and c.model.name) for c in worlds.cells(Path("w"), Path("c"))]
    assert made == [
        ("bundled", "scenes", None), ("bundled", "photographs", None), ("second", "scenes", "large"),
        ("second", "photographs", "large"), ("second", "scenes-wide", "large"), ("second", "photographs-wide", "large"),
        ("clips", "clips", "large"),
    ]  # fmt: skip
    assert {pair for pair, _, _ in made} == set(worlds.PAIRS)
    for cell in worlds.cells(Path("w"), Path("c")):
        settings = cell.settings(Path("x"), None, 1)
        assert settings.limit == (300 if "wide" in cell.task else 1000)
        left = set(vlmprune.list_methods()) - set(settings.methods)
        left = {name for name in left if not issubclass(vlmprune.list_methods()[name], vlmprune.CacheMethod)}
        assert left == ({"scope", "visionzip", "prumerge"} if cell.task == "clips" else set())
