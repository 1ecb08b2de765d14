"""Plans against hand arithmetic, against what a wrapped model reports, and what bad input is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmprune
from tests.support.commands import refused, run
from tests.support.tiny_families import build, make_inputs
from vlmprune import VlmpruneError
from vlmprune.accounting.flops import LayerCost, ModelCost, model_cost
from vlmprune.accounting.hardware import HARDWARE, Hardware, hardware
from vlmprune.accounting.model_sizes import model_size, read_config
from vlmprune.accounting.roofline import Estimate, ModelSize, estimate, verdict
from vlmprune.families import family_of
from vlmprune.tiny import WEIGHTS

MACHINE = Hardware("toy", flops=1000.0, bandwidth=100.0, memory=10_000.0, half_only=False)
LAYER = LayerCost(linear=10, cross_linear=0, query_width=4, kv_width=2, window=None, cross=False)


def plan(*arguments: str) -> dict[str, Any]:
    return json.loads(run("plan", "--json", *arguments))


def test_an_estimate_by_hand() -> None:
    size = ModelSize("toy", ModelCost((LAYER, LAYER), 5, 2), 50, 20, 80, 300, visual=6)
    found = estimate(size, MACHINE, text=4, new=3, kept=2, layer=1)
    # Layer 0 has 10 rows and 55 pairs, layer 1 has 6 rows and 21 pairs; the head runs once.
    flops = 2 * (10 * 10 + 2 * 4 * 55) + 2 * (10 * 6 + 2 * 4 * 21) + 2 * 5
    assert found.prefill_flops == flops
    assert found.kv_bytes == 2 * (10 + 6) * 2 * 2
    assert found.prefill == (50 + found.kv_bytes) / 100 > flops / 1000  # here reading weights takes longer
    assert found.vision == 0.3
    step = 2 * 5 + 2 * (10 + 2 * 4 * 11) + 2 * (10 + 2 * 4 * 7)  # halfway, each layer has a token more
    moved = 50 + 2 * (11 + 7) * 2 * 2
    assert found.decode_token == max(step / 1000, moved / 100)
    assert found.decode == 2 * found.decode_token
    assert found.requests == ((9000 - 80) // (2 * (13 + 9) * 2 * 2))


def test_cross_attention_keeps_its_rows() -> None:
    cross = LayerCost(linear=10, cross_linear=3, query_width=4, kv_width=2, window=None, cross=True)
    size = ModelSize("toy", ModelCost((LAYER, cross), 5, 2), 1, 1, 1, 0, visual=6)
    found = estimate(size, MACHINE, text=4, new=1, kept=2, layer=0)
    assert found.prefill_flops == 2 * (10 * 4 + 8 * 10) + 2 * (10 * 4 + 3 * 2 + 2 * 4 * 4 * 2) + 10
    assert found.kv_bytes == 2 * (4 + 2) * 2 * 2


@pytest.mark.parametrize(
    ("guide", "exits"), [(1.0, 0.0), (3.0, 0.0), (5.0, 1 - 5 / 6), (10.0, None)]
)
def test_when_a_guide_pays(guide: float, exits: float | None) -> None:
    def took(seconds: float) -> Estimate:
        return Estimate(1, 0, 1, 1, 0.0, seconds, 0.0, 0.0)

    said = verdict(took(10.0), took(6.0), took(guide))
    assert said["allowed"] == 4.0
    assert said["exits"] == pytest.approx(exits)
    assert said["pays"] == (guide < 4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "mllama"])
def test_counts_equal_the_report_of_a_run(family: str) -> None:
    model = build(family)
    inputs = make_inputs(model)
    with torch.no_grad(), vlmprune.wrap(model, "none") as pruned:
        model(**inputs)
    report, cost, rows = pruned.report, model_cost(family_of(model), model), family != "mllama"
    total = 0
    for length, visual in zip(inputs["attention_mask"].sum(1).tolist(), report.visual_tokens, strict=True):
        size = ModelSize("", cost, 1, 1, 1, 0, visual=visual)
        text = length - visual if rows else length
        total += estimate(size, MACHINE, text=text, new=1, kept=visual, layer=0).prefill_flops
    assert total == report.prefill_flops


def test_a_model_is_sized_without_weights() -> None:
    large, _, _ = vlmprune.load_tiny()
    size = model_size(read_config(WEIGHTS / "large" / "config.json"), dtype="fp32", visual=None, name="large")
    assert size.cost == model_cost(family_of(large), large)
    assert size.all_bytes == sum(p.numel() * 4 for p in large.parameters())
    assert size.visual == 196


def test_the_command_plans_every_setting() -> None:
    made = plan("--keep", "0.25", "--keep", "49", "--method", "fastv", "--method", "sgl", "--visual", "196")
    assert [(row["method"], row["keep"]) for row in made["rows"]] == [
        ("none", "1.0"), ("fastv", "0.25"), ("fastv", "49"), ("sgl", "0.25"), ("sgl", "49"),
    ]  # fmt: skip
    assert [row["kept"] for row in made["rows"]] == [196, 49, 49, 49, 49]
    assert made["rows"][1]["layer"] == 2
    assert made["rows"][3]["layer"] == int(0.25 * made["prompt"]["layers"])
    assert made["rows"][3]["guide"] > 0 and made["rows"][1]["guide"] == 0
    assert [said["keep"] for said in made["sgl"]] == ["0.25", "49"]
    assert made["rows"][1]["prefill_flops"] < made["rows"][0]["prefill_flops"]


def test_the_command_names_a_guide_that_pays_and_one_that_does_not(tmp_path: Path) -> None:
    large, small = str(WEIGHTS / "large"), str(WEIGHTS / "small")
    shown = run("plan", large, "--guide", small, "--method", "sgl", "--visual", "2000")
    assert "SGL at keep=0.05: pays; the guide takes" in shown
    shown = run("plan", small, "--guide", large, "--method", "sgl", "--keep", "0.5")
    assert "does not pay" in shown


def test_hardware() -> None:
    assert set(HARDWARE) == {"h100", "a100", "4090", "l4"}
    assert hardware("custom", flops=1.0, bandwidth=2.0, memory=3.0).seconds(10.0, 1.0) == 10.0
    for message, arguments in {
        r"no hardware 'h10'; did you mean 'h100'": {"name": "h10"},
        "'custom' has no bandwidth": {"name": "custom", "flops": 1.0},
        "peaks of 'l4' are known, but flops": {"name": "l4", "flops": 1.0},
        "flops of 'custom' must be a number above 0, got -1.0": {
            "name": "custom", "flops": -1.0, "bandwidth": 1.0, "memory": 1.0,
        },
    }.items():  # fmt: skip
        with pytest.raises(VlmpruneError, match=message):
            hardware(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no config at"),
        (["--hardware", "h200x"], "no hardware"),
        (["--dtype", "fp32"], "the peak of 'h100' is that of bf16"),
        (["--dtype", "int4"], "'int4' is not one of"),
        (["--method", "fast"], "no method 'fast'"),
        (["--method", "none"], "drops no tokens"),
        (["--method", "pyramiddrop"], "drops tokens at layers (1, 2, 4)"),
        (["--method", "sparsevlm"], "which has no plan"),
        (["--keep", "0"], "keep=0 is out of range"),
        (["--keep", "x"], "'--keep': must be a whole number or a fraction like 0.25, got 'x'"),
        (["--layer", "99", "--method", "random"], "beyond the model's"),
        (["--text", "0"], "'--text': must be a whole number of 1 or more, got '0'"),
        ([str(WEIGHTS / "large"), "--method", "sgl"], "name it with --guide"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str) -> None:
    assert message in refused("plan", *arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not a JSON object"), ("[]", "is not a JSON object"), ('{"model_type": "x"}', "unknown model_type 'x'"),
     ('{"model_type": "bert"}', "'bert'")],
)  # fmt: skip
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert message in refused("plan", str(tmp_path))
