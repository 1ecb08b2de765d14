"""Measuring anew goes on where it was killed, and refuses to mix commits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import pages, remake
from vlmprune import VlmpruneError

STEPS = (remake.Step("one", "a --out {out}", "x/one.json"), remake.Step("two", "b --records {records}", "", 2))


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def killed(words: list[str]) -> int:
        asked.append(words)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        remake.run_steps(STEPS, tmp_path, killed, "abc")
    minutes = remake.run_steps(STEPS, tmp_path, killed, "abc")
    assert [words[-2:] for words in asked] == [
        ["--out", str(tmp_path / "one/one.json")],
        ["--records", str(tmp_path / "two-records")],
        ["--records", str(tmp_path / "two-records")],
    ]
    assert "torch.distributed.run" in asked[1]
    assert set(minutes) == {"one", "two"}
    with pytest.raises(VlmpruneError, match="of commit 'abc', not 'abd'"):
        remake.run_steps(STEPS, tmp_path, killed, "abd")


def test_a_step_that_fails_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(VlmpruneError, match="'one' failed with status 3"):
        remake.run_steps(STEPS, tmp_path, lambda words: 3, "abc")
    assert json.loads((tmp_path / "minutes.json").read_text())["done"] == []


def test_records_are_copied_to_where_pages_read_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remake, "ROOT", tmp_path / "root")
    (tmp_path / "root/eval/results").mkdir(parents=True)
    grid = next(step for step in remake.STEPS["tables"] if step.name == "grid")
    for name in ("summary.json", "samples.jsonl"):
        file = tmp_path / "work/grid/results/scenes/none" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    remake.copy(grid, tmp_path / "work")
    sinks = next(step for step in remake.STEPS["tables"] if step.name == "sinks")
    (tmp_path / "work/sinks").mkdir()
    (tmp_path / "work/sinks/sinks_study.json").write_text("{}")
    remake.copy(sinks, tmp_path / "work")
    found = {str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*") if path.is_file()}
    assert found == {"eval/results/scenes/none/summary.json", "eval/results/sinks_study.json"}


def test_every_record_of_the_bundled_pair_that_a_page_shows_has_a_step() -> None:
    read = {source for page in pages.PAGES.values() for source, _ in page.values()}
    made = {step.to for steps in remake.STEPS.values() for step in steps}
    other = {f"eval/speed/results/{name}.json" for name in ("overhead", "imports", "var", "prefill")}  # random weights
    other |= {"tests/full/records/matrix.json", "eval"}  # as well; no record
    other |= {f"eval/serving/results/{name}.json" for name in ("turns", "in_engine")}  # need vLLM's environment
    assert read - other <= made
