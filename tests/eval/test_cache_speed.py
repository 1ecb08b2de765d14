"""The benchmark of long caches: each row reads what it says, stores what it claims, and the page shows its record."""

from __future__ import annotations

import json

import pytest
import torch

import vlmprune
from eval import pages
from eval.speed import cache

LENGTH, LAYERS, GROUP = 640, 4, 2


def test_a_run_measures_every_row(tmp_path, capsys):
    out = tmp_path / "cache.json"
    words = ["--lengths", str(LENGTH), "--rounds", "1", "--width", "512", "--layers", str(LAYERS), "--out", str(out)]
    cache.main(words)
    rows, printed = json.loads(out.read_text())["rows"], capsys.readouterr().out.splitlines()
    assert [row["way"] for row in rows] == [way.name for way in cache.ways(LENGTH, LAYERS, GROUP)]
    assert all(row["bytes"] == row["claimed"] and row["milliseconds"]["way"] > 0 for row in rows)
    assert [("above 1.15" in line) for line in printed] == [row["over"] > 1.15 for row in rows]


def attended(way: cache.Way, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Per layer, the entries that a key head of a step attends to on average."""
    found, original = [], torch.nn.functional.scaled_dot_product_attention

    def record(query, key, value, *args, **kwargs):
        found.append((key.shape[1], key.shape[2]))
        return original(query, key, value, *args, **kwargs)

    sizes = {"num_key_value_heads": cache.KEY_HEADS}
    model = cache.random_llava(512, LAYERS, side=30, **sizes)
    with vlmprune.wrap(model, way.method or "none"), torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
        cache.stepping(model, way.cache)()
    layers: list[list[tuple[int, int]]] = [[]]
    for one in found:
        if sum(heads for heads, _ in layers[-1]) == cache.KEY_HEADS:
            layers.append([])
        layers[-1].append(one)
    return [sum(heads * entries for heads, entries in layer) / cache.KEY_HEADS for layer in layers]


def test_each_row_reads_what_it_says(monkeypatch):
    """With the step's own entry; the last page of 16 has no other."""
    torch.manual_seed(0)
    found = {way.name: (way, attended(way, monkeypatch)) for way in cache.ways(LENGTH, LAYERS, GROUP)}
    whole, few = LENGTH + 1, LENGTH // 8 + 1
    for name, expected in {
        "plain, copied": [whole] * 4, "kv-buffer": [whole] * 4, "cut, copied": [few] * 4, "cut": [few] * 4,
        "cut by head": [few] * 4, "delta": [whole, whole, 65, 65], "quest": [whole, 65, 65, 65],
    }.items():  # fmt: skip
        assert found[name][1] == expected
    assert found["delta"][0].moved == [640, 960, 240, 240]
    assert found["quest"][0].moved == [640, 560, 560, 560]
    for name in ("adakv", "task-kv"):
        way, read = found[name]
        assert [entries - 1 for entries in read] == [pytest.approx(moved, abs=1) for moved in way.moved]
        assert way.claimed == cache.KEY_HEADS * sum(entries - 1 for entries in read)
    # Of 0.4 of the entries one head of four has all, so the others share 1.6 - 1.
    assert found["task-kv"][1][0] == pytest.approx(0.4 * LENGTH + 1, abs=1)


def test_two_groups_of_heads_store_the_least():
    assert cache.stored([9, 2, 3, 2]) == 9 + 3 * 3
    assert cache.stored([9, 2, 8, 2]) == 2 * 9 + 2 * 2
    assert cache.stored([5, 5]) == 10


def test_the_page_shows_the_record(monkeypatch):
    monkeypatch.setattr(cache, "committed", lambda name: None)
    assert pages.made_of("docs/cache.md", "speed").startswith("Not measured yet: `python -m eval.speed.cache`")
    row = {
        "cached": 4000, "way": "delta", "milliseconds": {"way": 20.04}, "of plain": 0.5, "moved": 2345.6, "over": 1.1,
        "bytes": 66600000, "claimed": 66600000,
    }  # fmt: skip
    about = {"rounds": 3, "model": "a model", "machine": "a machine", "limit": 1.15}
    monkeypatch.setattr(cache, "committed", lambda name: {"about": about, "rows": [row, row | {"over": 1.16}]})
    table, said = pages.made_of("docs/cache.md", "speed").split("\n\n")
    assert table.splitlines()[2] == "| 4,000 | delta | 20.0 | 0.50 | 2,346 | 1.10 | 66.6 | 66.6 |"
    assert " ".join(said.split()).endswith("a model, sdpa, a machine. Above 1.15 of the ideal: delta at 4,000.")
