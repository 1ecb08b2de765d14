"""Conversations on an engine: their record says what the table does, and obeys the rule of the engine's cache."""

from __future__ import annotations

import json
from typing import Any

from eval.provenance import ROOT
from eval.serving.turns import BLOCK, QUESTIONS, WAYS, table


def talk(cached: tuple[int, ...], seconds: tuple[float, ...], prompts: tuple[int, ...] = (100, 110, 120)) -> Any:
    turns = [
        {"prompt": prompt, "cached": found, "first_token": time, "answer": "red"}
        for prompt, found, time in zip(prompts, cached, seconds, strict=True)
    ]
    return {"turns": turns, "encoded": 3}


def test_the_table_says_what_was_measured() -> None:
    """Sums of a conversation, and times relative to plain vLLM's in the same one."""
    slow, fast = talk((0, 96, 96), (2.0, 1.0, 3.0)), talk((0, 0, 32), (1.0, 1.0, 1.0), (40, 50, 60))
    rounds = [{"plain": slow, "inside": fast, "kept": slow, "anew": slow} for _ in range(3)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table({"conversations": rounds}).splitlines()]
    assert rows[2] == [WAYS["plain"], "330", "192", "138", "100%", "3", "100%", "100%"]
    assert rows[3] == [WAYS["inside"], "150", "32", "118", "86%", "3", "50%", "50%"]


def test_the_record_obeys_the_rule_of_the_cache() -> None:
    """Whole blocks of what an earlier turn left, and all of them where the choice stays; nothing at a first turn."""
    record = json.loads((ROOT / "eval/serving/results/turns.json").read_text())
    for found in record["conversations"]:
        assert list(found) and set(found) == set(WAYS)
        for way, one in found.items():
            first, *later = one["turns"]
            assert (len(later), first["cached"]) == (len(QUESTIONS) - 1, 0)
            for before, now in zip(one["turns"], later, strict=False):
                assert now["cached"] % BLOCK == 0
                whole = before["prompt"] // BLOCK * BLOCK
                assert now["cached"] <= whole + BLOCK
                assert now["cached"] >= (0 if way == "anew" else whole)
