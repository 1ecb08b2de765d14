"""What the page of results says about records made by hand, against decisions made in loops here."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest

from eval import pages, results_page
from eval.summary import summarise
from eval.tasks.load import Data
from eval.tasks.registry import TASKS
from eval.worlds import page as worlds
from tests.eval.data import put
from vlmprune.errors import VlmpruneError

T_39, T_9 = 2.02269, 2.26216  # Student's table, 97.5 %
Answers = list[float]


def record(
    method: str, keep: str | None, right: Answers, flops: float = 50, ms: float = 10, guide: float = 0, **more: Any
) -> dict[str, Any]:
    return {
        "task": "toy", "method": method, "keep": keep, "model": "m", "backend": "b", "batch_size": 1,
        "questions": len(right), "bad_count": 0, "main": "accuracy", "value": sum(right) / len(right),
        "standard_error": 0.01, "metrics": {}, "costs": {"visual_tokens": 10.0, "kept_tokens": 10 * float(keep or 1),
            "prefill_flops": flops - guide, "guide_flops": guide, "seconds": {"total": ms / 1000}},
        "positions": {"rows": 3, "columns": 1, "kept_share": [0.2, 0.5, 0.3]}, "data": {"ids_sha256": "x"},
        "units": {"ids_sha256": "x", "above": right, "below": None},
        "provenance": {"machine": "here", "commit": "0123456789abcdef", "dirty": False}, **more,
    }  # fmt: skip


def better(a: Answers, b: Answers, t: float = T_39) -> bool:
    """Whether the 95 % interval of the mean of pairs lies above zero."""
    pairs = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(pairs) / len(pairs)
    variance = 0.0
    for pair in pairs:
        variance += (pair - mean) ** 2 / (len(pairs) - 1)
    return mean > t * math.sqrt(variance / len(pairs))


def names(text: str, after: str) -> list[str]:
    """The methods of the sentence part that begins with `after`."""
    found = re.search(re.escape(after) + r"(.*?)\.(?: |$)", text)
    return re.findall(r"`([^`]+)`", found[1]) if found else []


def drawn(seed: int) -> list[dict[str, Any]]:
    """An unpruned row, a small model and eight methods of 40 questions each, of different quality and cost."""
    rng = random.Random(seed)
    rows = [record("none", None, [1.0] * 38 + [0.0] * 2, 100, 30)]
    rows.append(record("small-alone", None, [float(rng.random() < 0.7) for _ in range(40)], 2, 3))
    for at in range(8):
        level = rng.choice((0.5, 0.7, 0.85, 0.95))
        right = [float(rng.random() < level) for _ in range(40)]
        flops, guide = rng.uniform(10, 60), rng.choice((0, 5))
        rows.append(record(f"m{at}", "0.1", right, flops, rng.uniform(5, 30), guide))
    return rows


@pytest.mark.parametrize("seed", range(12))
def test_the_best_what_equals_it_and_the_cheapest(seed: int) -> None:
    rows = drawn(seed)
    there = {row["method"]: row for row in rows[2:]}
    right = {name: row["units"]["above"] for name, row in there.items()}
    text = results_page.recommended(rows, "0.1")
    top = re.match(r"`(\w+)` has the highest accuracy", text)
    assert top is not None
    assert sum(right[top[1]]) == max(map(sum, right.values()))
    equal = {name for name in there if name != top[1] and not better(right[top[1]], right[name])}
    assert set(names(text.replace("0.", "0,"), "Not distinguishable from it: ")) == equal
    assert ("better than every other" in text) == (not equal)
    for words, some in (("without a guide", False), ("with a guide", True)):
        pool = [there[n] for n in {top[1], *equal} if (there[n]["costs"]["guide_flops"] > 0) == some]
        few = min(pool, default=None, key=lambda row: row["costs"]["prefill_flops"] + row["costs"]["guide_flops"])
        fast = min(pool, default=None, key=lambda row: row["costs"]["seconds"]["total"])
        said = re.search(rf"The cheapest {words}(.*?\))\.(?: |$)", text)
        found = re.findall(r"`(\w+)`", said[1]) if said else []
        assert found == list(dict.fromkeys(row["method"] for row in (few, fast) if row is not None))


@pytest.mark.parametrize("seed", range(12))
def test_where_our_own_method_loses(seed: int) -> None:
    rows = drawn(seed)
    rows[2]["method"] = "sgl-mine"
    (said,) = results_page.losses(rows)
    mine = rows[2]["units"]["above"]
    expected = {row["method"] for row in rows[1:] if better(row["units"]["above"], mine)}
    found = re.findall(r"`([^`]+)`", said.partition("is worse than")[2])
    assert set(found) == expected
    assert ("not measurably worse than any other" in said) == (not expected)
    for name in found:
        lead = 100 * (next(r for r in rows if r["method"] == name)["value"] - rows[2]["value"])
        assert f"`{name}` by {lead:.1f} points" in said


def test_a_method_whose_interval_holds_zero_is_not_better() -> None:
    """Two questions more of forty: ahead, and no more can be said; a copy with all of them wrong is worse."""
    first, second = [1.0] * 38 + [0.0] * 2, [1.0] * 36 + [0.0] * 4
    assert not better(first, second)
    rows = [record("none", None, [1.0] * 40, 100), record("a", "0.1", first), record("b", "0.1", second)]
    assert "Not distinguishable from it: `b`" in results_page.recommended(rows, "0.1")
    rows[2] = record("b", "0.1", [0.0] * 40)
    assert "is better than every other method" in results_page.recommended(rows, "0.1")
    assert "is the only method at this budget" in results_page.recommended(rows[:2], "0.1")


def test_questions_of_one_image_count_once() -> None:
    """Ten images of four questions: seven images for, three against is no lead, forty separate questions would be."""
    first, second = [4.0] * 7 + [0.0] * 3, [0.0] * 7 + [4.0] * 3
    apart = [[x / 4 for x in answers for _ in range(4)] for answers in (first, second)]
    assert better(*apart)
    assert not better([x / 4 for x in first], [x / 4 for x in second], T_9)
    weights = {"ids_sha256": "x", "below": [4.0] * 10}
    rows = [record("none", None, [4.0] * 10, 100, units={**weights, "above": [4.0] * 10})]
    rows += [record(n, "0.1", r, units={**weights, "above": r}) for n, r in (("a", first), ("b", second))]
    assert "Not distinguishable from it: `b`" in results_page.recommended(rows, "0.1")
    rows = [record("none", None, [1.0] * 40, 100), *(record(n, "0.1", r) for n, r in zip("ab", apart, strict=True))]
    assert "is better than every other method" in results_page.recommended(rows, "0.1")


def test_what_cannot_be_recommended_is_left_out() -> None:
    """A reference that costs a full run, and a row of other questions, however good they are."""
    good, fair = [1.0] * 40, [1.0] * 30 + [0.0] * 10
    other = {"ids_sha256": "y", "above": good, "below": None}
    rows = [
        record("none", None, good, 100), record("small-alone", None, fair, 2),
        record("uniform", "0.1", [0.0] * 20 + good[20:]), record("a", "0.1", fair),
        record("oracle", "0.1", good, 120, guide=100), record("elsewhere", "0.1", good, units=other),
    ]  # fmt: skip
    assert results_page.recommended(rows, "0.1").startswith("`a` has the highest accuracy")
    said = "\n".join(results_page.compared(rows, "0.1"))
    assert "Not measurably worse than the unpruned model: none." in said
    assert "Better than the small model alone, `small-alone` (0.750 ± 0.010; 2.0%, 10.0 ms): none. Not better" in said
    assert "they cost at least as much as the unpruned model: `oracle`." in said
    assert "they did not answer its questions: `elsewhere`." in said
    assert results_page.recommended(rows[4:], "0.1").startswith("No method")


def test_failures_are_bold_where_the_interval_excludes_zero() -> None:
    whole = {"colour": [1.0] * 40, "count": [1.0] * 40}
    mine = {"colour": [1.0] * 38 + [0.0] * 2, "count": [1.0] * 30 + [0.0] * 10}
    assert [better(whole[kind], mine[kind]) for kind in whole] == [False, True]

    def row(method: str, keep: str | None, answers: dict[str, Answers], recorded: bool) -> dict[str, Any]:
        right = answers["colour"] + answers["count"]
        parts = {kind: {"ids_sha256": kind, "above": one, "below": None} for kind, one in answers.items()}
        found = {f"family/{kind}": sum(one) / len(one) for kind, one in answers.items()}
        return record(method, keep, right, metrics={"accuracy": 0.9, **found}, **({"parts": parts} if recorded else {}))

    new, old = ([row("none", None, whole, how), row("a", "0.1", mine, how)] for how in (True, False))
    assert results_page.failures(new).splitlines()[-1] == "| a 0.1 | -5.0 | **-25.0** |"
    text = results_page.failures(old)
    assert text.splitlines()[-1] == "| a 0.1 | -5.0 | -25.0 |"
    assert "there are no intervals and nothing is bold" in " ".join(text.split())
    assert results_page.failures([record("none", None, [1.0])]) == "The questions of this task have no families."


def test_a_summary_holds_its_answers_by_family() -> None:
    lines: list[dict[str, Any]] = [
        {"id": f"{at}", "group": f"{at // 2}", "score": float(at % 3 == 0), "meta": {"family": "ab"[at % 2]},
         "report": {"seconds": {}, "answer_tokens": 1, "cells": {"kept": [1] * 144, "all": [1] * 144}}}
        for at in range(6)
    ]  # fmt: skip
    found = summarise(TASKS["scenes"](), Data([], [], "hash"), lines, {}, {})
    assert found["units"]["above"] == [1, 1, 0]
    assert found["units"]["below"] == [2, 2, 2]
    assert {name: (part["above"], part["below"]) for name, part in found["parts"].items()} == {
        "a": ([1, 0, 0], None),
        "b": ([0, 1, 0], None),
    }


def test_the_page_of_worlds_has_every_cell_in_its_own_column(tmp_path: Path) -> None:
    made = {("second", "toy"): 0.25, ("bundled", "toy"): 0.5, ("bundled", "other"): 0.75}
    for (pair, task), right in made.items():
        for method, keep, less in (("none", None, 0.0), ("scope", "0.1", 0.25)):
            row = record(
                method, keep, [float(at < 40 * (right - less)) for at in range(40)], 100 if keep is None else 20
            )
            put(tmp_path, f"{pair}/{task}/{method}/summary.json", json.dumps({**row, "task": task, "scores": []}))
    text = worlds.page(tmp_path)
    assert "| method | bundled, other | bundled, toy | second, toy |" in text
    assert "| `none` | 0.750 ± 0.010 (100%) | 0.500 ± 0.010 (100%) | 0.250 ± 0.010 (100%) |" in text
    assert "| `scope` | 0.500 ± 0.010 (20%) | 0.250 ± 0.010 (20%) | 0.000 ± 0.010 (20%) |" in text
    assert text.count("`scope` has the highest accuracy") == 3
    (tmp_path / "second/toy/none/summary.json").unlink()
    with pytest.raises(VlmpruneError, match="second/toy have no row of the unpruned model"):
        worlds.page(tmp_path)


@pytest.mark.parametrize("name", ["docs/results.md", "docs/worlds.md"])
def test_what_the_page_links_to_is_there(name: str) -> None:
    page = pages.ROOT / name
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert links
    assert [link for link in links if not Path(page.parent, link).exists()] == []
