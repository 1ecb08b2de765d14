"""Plans of long answers against hand arithmetic, against a step measured part by part, and against what runs hold."""

from __future__ import annotations

import json

import pytest

import vlmprune
from tests.accounting.test_plan import LAYER, MACHINE
from tests.support.commands import refused, run
from tests.support.grid import few
from tests.support.running import generate, shared
from tests.support.tiny_families import make_inputs, row
from vlmprune import VlmpruneError
from vlmprune.accounting.answer import MoveCost, answer_cost
from vlmprune.accounting.flops import LayerCost, ModelCost, model_cost
from vlmprune.accounting.roofline import ModelSize
from vlmprune.attention.masks import Window
from vlmprune.families import family_of

SIZE = ModelSize("toy", ModelCost((LAYER, LAYER), 5, 2), 50, 20, 80, 300, visual=6)
PROMPT = {"text": 4, "new": 3, "kept": 2}
ENTRY = 2 * 2 * 2  # bytes of an entry's keys and values


def test_a_layer_of_a_7b_model_over_16_000_entries() -> None:
    """Measured on a CPU: linear maps 63 ms, attention 21 ms, its copy 1.6 times that, a gather of an eighth with its
    attention .3, a selecting layer 1.65 times. The sums were 118, 107, 84, 73 and 70 ms."""
    measured, attention, entries = MoveCost(copy=1.6, select=0.65, gather=1.4), 21.0 / 16000, 16000

    def layer(copied: bool, **options: float) -> float:
        return attention * measured.moved(options.pop("held", entries), copied=copied, **options)

    def delta(copied: bool) -> float:
        """Of 28 layers two read everything and three select."""
        reading = layer(copied, read=entries / 8)
        return (2 * layer(copied) + 3 * layer(copied, selects=True) + 23 * reading) / 28

    ways = [layer(True), delta(True), layer(False), delta(False), layer(True, held=entries / 8)]
    assert [round(63 + way) for way in ways] == [118, 107, 84, 73, 70]


def test_entries_moved_in_principle() -> None:
    moved = MoveCost().moved
    assert moved(100, copied=True) == 2 * 100 + 100
    assert moved(100, copied=True, read=20) == 2 * 100 + 3 * 20
    assert moved(100, copied=False, read=20) == 3 * 20
    assert moved(100, copied=False, selects=True) == 100 + 100 / 2  # the keys alone are read again
    assert moved(100, copied=False, read=100 / 3) == pytest.approx(100)  # where a gather breaks even


def test_copied_and_buffered_by_hand() -> None:
    """The first token comes from the prompt, the other two from steps over 11 and 12 entries in each of two layers."""
    found = answer_cost(SIZE, MACHINE, "uncut", buffer=False, **PROMPT)
    assert (found.kept, found.entries, found.fit) == (6, 12, (9000 - 80) // (2 * 12 * ENTRY))
    assert found.moved == 3 * (11 + 12) / 2
    assert (found.kv_prompt, found.kv_end) == (2 * 10 * ENTRY, 2 * 12 * ENTRY)
    assert found.answer == pytest.approx(sum(50 + 2 * 3 * held * ENTRY for held in (11, 12)) / 100)
    assert found.token == found.answer / 2
    assert found.total == 0.3 + found.prefill + found.answer

    grown = answer_cost(SIZE, MACHINE, "uncut", buffer=True, **PROMPT)
    assert grown.moved == (11 + 12) / 2 + 2 * 10 / 2  # the prompt's entries are copied once
    assert grown.kv_end == 2 * (10 + 64) * ENTRY
    assert grown.answer == pytest.approx(sum(50 + 2 * held * ENTRY for held in (11, 12)) / 100 + 2 * 20 * ENTRY / 100)


def test_cut_pruned_and_read_in_part_by_hand() -> None:
    cut = answer_cost(SIZE, MACHINE, "cut", buffer=False, **PROMPT)
    assert (cut.entries, cut.moved, cut.kv_end) == (8, 3 * (7 + 8) / 2, 2 * 8 * ENTRY)
    pruned = answer_cost(SIZE, MACHINE, "pruned", buffer=False, **PROMPT)
    whole = answer_cost(SIZE, MACHINE, "uncut", buffer=False, **PROMPT)
    assert pruned.prefill < cut.prefill == whole.prefill
    assert (pruned.moved, pruned.answer, pruned.kv_end) == (cut.moved, cut.answer, cut.kv_end)
    delta = vlmprune.Delta(pages=4, page=1, recent=1, full=0, selecting=[0])
    # Over 11 entries both layers read all; over 12, three times the pages, the first selects and the second gathers.
    part = answer_cost(SIZE, MACHINE, "delta", buffer=True, delta=delta, **PROMPT)
    assert part.moved == (11 + 11 + 1.5 * 12 + 3 * 4 + 2 * 20) / 2 / 2
    assert part.kv_end == 2 * (10 + 64) * ENTRY


def test_windows_are_copied_and_never_cut() -> None:
    window = LayerCost(linear=10, cross_linear=0, query_width=4, kv_width=2, window=Window(5), cross=False)
    size = ModelSize("toy", ModelCost((window, LAYER), 5, 2), 50, 20, 80, 300, visual=6)
    found = answer_cost(size, MACHINE, "cut", buffer=True, **PROMPT)
    assert found.moved == (3 * 5 + 3 * 5 + 7 + 8 + 2 * 6) / 2 / 2
    assert found.kv_prompt == (4 + 6) * ENTRY
    assert found.kv_end == (4 + 6 + 64) * ENTRY


def test_a_long_answer_doubles_its_buffer() -> None:
    found = answer_cost(SIZE, MACHINE, "uncut", buffer=True, text=4, new=66, kept=6)
    assert found.kv_end == 2 * (10 + 64 + 128) * ENTRY
    assert found.moved == pytest.approx(10 + 33 + 2 * (10 + 74) / 65)


@pytest.mark.parametrize(("way", "buffer"), few([("cut", True), ("uncut", True), ("cut", False), ("pruned", False)], 4))
def test_bytes_are_those_that_a_run_holds(way: str, buffer: bool) -> None:
    model = shared("llava")
    inputs = row(make_inputs(model, text_lengths=(9, 12), images=(1, 1)), 1)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    cuts = [vlmprune.SnapKV(3, buffer=buffer)] if way == "cut" else [vlmprune.Buffer(buffer=buffer)]
    method = [vlmprune.Uniform(3), *cuts] if way == "pruned" else cuts
    with vlmprune.wrap(model, method) as pruned:
        generate(model, inputs, 5)
        report = pruned.report.cache
    text = inputs["input_ids"].shape[1] - visual
    size = ModelSize("tiny", model_cost(family_of(model), model), 1, 1, 1, 0, visual=visual)
    found = answer_cost(size, MACHINE, way, buffer=buffer, text=text, new=5, kept=3)
    assert (found.kv_prompt, found.kv_end) == (report.bytes_prefill, report.bytes_end)
    assert [found.entries] * len(report.attended) == report.attended


def test_cross_attention_is_refused() -> None:
    cross = LayerCost(linear=10, cross_linear=3, query_width=4, kv_width=2, window=None, cross=True)
    size = ModelSize("toy", ModelCost((LAYER, cross), 5, 2), 1, 1, 1, 0, visual=6)
    with pytest.raises(VlmpruneError, match="toy keeps its images in cross-attention layers"):
        answer_cost(size, MACHINE, "uncut", buffer=True, **PROMPT)


def test_the_command() -> None:
    arguments = ["plan", "llava-1.5-7b", "--visual", "2880", "--method", "fastv", "--keep", "0.25"]
    made = json.loads(run(*arguments, "--answer-tokens", "2000", "--json"))
    assert made["prompt"]["new"] == made["answer"]["tokens"] == 2000
    rows = {(one["method"], one["buffer"]): one for one in made["answer"]["rows"]}
    assert list(rows) == [
        ("none", False), ("none", True), ("delta", True), ("cut", False), ("cut", True), ("pruner", True),
    ]  # fmt: skip
    assert rows["none", False]["kv_prompt"] == 2944 * 2 * 32 * 4096 * 2  # 0.5 MB an entry
    assert rows["none", True]["token"] == pytest.approx(made["rows"][0]["decode_token"], rel=0.01)
    assert rows["cut", True]["kv_prompt"] == (720 + 64) * 2 * 32 * 4096 * 2
    token = {key: own["token"] for key, own in rows.items()}
    assert token["cut", True] < min(token["cut", False], token["none", True]) < token["none", False]
    assert rows["pruner", True]["total"] < rows["cut", True]["total"]
    assert "answer" not in json.loads(run(*arguments, "--json"))
    shown = run(*arguments, "--answer-tokens", "2000")
    assert "An answer of 2,000 tokens" in shown and "…" not in shown
    assert "delta reads 1,024 entries" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--new", "3", "--answer-tokens", "5"], "--new and --answer-tokens both say how many tokens are generated"),
        (["--answer-tokens", "0"], "'--answer-tokens': must be a number from 1 to 100,000,000, got '0'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    assert message in refused("plan", *arguments)
