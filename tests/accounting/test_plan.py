"""Plans against hand arithmetic, against what a wrapped model reports, and what bad input is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmprune
from tests.support.commands import refused, run
from tests.support.generic import build_generic, make_generic_inputs
from tests.support.generic.common import default_config
from tests.support.grid import few
from tests.support.tiny_families import FAMILIES, build, make_inputs
from vlmprune import VlmpruneError
from vlmprune.accounting.configs import load_config
from vlmprune.accounting.flops import LayerCost, ModelCost, model_cost
from vlmprune.accounting.hardware import HARDWARE, Hardware, hardware
from vlmprune.accounting.model_sizes import model_size
from vlmprune.accounting.roofline import Estimate, ModelSize, estimate, verdict
from vlmprune.attention.masks import Window
from vlmprune.families import family_of
from vlmprune.families.generic import GenericFamily
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


def test_a_batch_by_hand() -> None:
    """Everything a request has of its own counts three times, weights once; of experts those that any row chooses."""
    size = ModelSize("toy", ModelCost((LAYER, LAYER), 5, 2), 50, 20, 80, 300, 6, expert_bytes=32, expert_share=0.25)
    slow = Hardware("slow", flops=1e9, bandwidth=100.0, memory=10_000.0)  # reading decides
    one = estimate(size, slow, text=4, new=3, kept=2, layer=1)
    three = estimate(size, slow, text=4, new=3, kept=2, layer=1, batch=3)
    assert (three.prefill_flops, three.kv_bytes) == (3 * one.prefill_flops, 3 * one.kv_bytes)
    assert (three.requests, three.cache) == (one.requests, one.cache) and one.cache == 2 * (13 + 9) * 2 * 2
    step = 2 * (11 + 7) * 2 * 2  # cache read halfway
    assert one.decode_token == (50 - 32 * 0.75 + step) / 100
    assert three.decode_token == pytest.approx((50 - 32 * 0.75**3 + 3 * step) / 100)
    assert three.prefill == pytest.approx((50 - 32 * 0.75**30 + three.kv_bytes) / 100)
    assert three.vision == 0.2


def test_windows_after_pruning_by_hand() -> None:
    """Kept tokens keep their positions: 4 of 12 at 0, 3, 6 and 9, then 3 of text; a row sees 5 positions back."""
    layer = LayerCost(linear=0, cross_linear=0, query_width=1, kv_width=2, window=Window(5), cross=False)
    size = ModelSize("toy", ModelCost((layer,), 0, 2), 1, 1, 1, 0, visual=12)
    places = [0, 3, 6, 9, 12, 13, 14]
    pairs = sum(before <= place < before + 5 for place in places for before in places)
    assert estimate(size, MACHINE, text=3, new=1, kept=4, layer=0).prefill_flops == 4 * pairs
    # Entries are stored side by side, so the cache is that of 7 rows.
    assert estimate(size, MACHINE, text=3, new=1, kept=4, layer=0).kv_bytes == 4 * 2 * 2 * 2


FITS = [
    (["qwen2.5-vl-7b"], []),
    (
        ["qwen2.5-vl-72b"],
        ["take 146.8 GB of the 72 GB that h100", "quantised to 4 bits (36.71 GB)", "over 4 x h100 (--gpus 4)"],
    ),
    (["qwen2.5-vl-32b", "--hardware", "l40s"], ["quantised to 8 bits (33.45 GB)", "one h100", "over 2 x l40s"]),
    (["qwen2.5-vl-72b", "--hardware", "h200", "--gpus", "2"], []),
    (["qwen2.5-vl-72b", "--gpus", "2"], ["of the 144 GB that 2 x h100", "over 4 x h100 (--gpus 4)"]),
    (["qwen2.5-vl-7b", "--batch", "2000"], ["2,000 requests do not fit", "random at keep=0.1 or fastv at"]),
    (["qwen2.5-vl-7b", "--visual", "5000000"], ["Without pruning, a request does not fit", "random at keep=0.1"]),
    (["qwen2.5-vl-7b", "--visual", "50000000"], ["at most 966,", "visual tokens per request", "over 64 x h100"]),
    (
        ["llava-1.5-13b", "--guide", "qwen2.5-vl-32b", "--method", "sgl"],
        ["A request with sgl does not fit: the guide's weights take another 66.91 GB", "one h200"],
    ),
    (["qwen3-vl-235b-a22b", "--hardware", "4090", "--batch", "64000"], ["nothing that is known here would"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), few(FITS, every=2))
def test_what_does_not_fit_and_what_would(arguments: list[str], said: list[str]) -> None:
    made = plan(*arguments, "--keep", "0.1")
    text = " ".join(made["does_not_fit"])
    assert bool(said) == bool(text) == any(row["requests"] < made["prompt"]["batch"] for row in made["rows"])
    for part in said:
        assert part in text


def test_what_would_fit_is_shown() -> None:
    shown = " ".join(run("plan", "qwen2.5-vl-32b", "--hardware", "l40s", "--keep", "0.1").split())
    assert "what would fit: weights quantised to 8 bits (33.45 GB), or one h100, or tensor parallel over 2" in shown
    assert "qwen2.5-vl-32b: 33.5B weights, 66.91 GB in bf16." in shown


def test_the_most_tokens_that_fit_are_the_most() -> None:
    arguments = ["qwen2.5-vl-7b", "--keep", "1.0", "--method", "random", "--visual"]
    (said,) = plan(*arguments, "50000000")["does_not_fit"]
    most = int(re.findall(r"at most ([\d,]+) visual", said)[0].replace(",", ""))
    assert [plan(*arguments, str(most + more))["rows"][0]["requests"] for more in (0, 1)] == [1, 0]


@pytest.mark.parametrize("visual", ["1024", "10000000"])
def test_no_heading_is_cut(visual: str) -> None:
    shown = run("plan", "qwen2.5-vl-7b", "--visual", visual, "--batch", "1000")
    assert "…" not in shown
    assert re.search(r"method +keep +tokens +layer +FLOPs +KV cache +vision ms +prefill ms +token ms +total ms", shown)


def test_cards_side_by_side() -> None:
    one, four = (plan("llava-1.5-7b", "--keep", "0.5", "--gpus", n) for n in ("1", "4"))
    assert four["hardware"]["cards"] == 4
    for before, after in zip(one["rows"], four["rows"], strict=True):
        assert after["total"] == pytest.approx(before["total"] / 4)
        assert after["requests"] > 4 * before["requests"]  # the weights are there once


@pytest.mark.parametrize(("guide", "exits"), [(1.0, 0.0), (3.0, 0.0), (5.0, 1 - 5 / 6), (10.0, None)])
def test_when_a_guide_pays(guide: float, exits: float | None) -> None:
    def took(seconds: float) -> Estimate:
        return Estimate(1, 0, 1, 1, 0.0, seconds, 0.0, 0.0)

    said = verdict(took(10.0), took(6.0), took(guide))
    assert said["allowed"] == 4.0
    assert said["exits"] == pytest.approx(exits)
    assert said["pays"] == (guide < 4)


@pytest.mark.parametrize(
    "family", ["llava", "qwen2_5_vl", "gemma3", "mllama", "qwen3_5_moe", "qwen3_vl_moe", "gemma4", "llama4"]
)
def test_counts_equal_the_report_of_a_run(family: str) -> None:
    """Hybrids, experts, windows, chunks and keys of other layers among them."""
    model = build(family) if family in FAMILIES else build_generic(family)
    inputs = make_inputs(model) if family in FAMILIES else make_generic_inputs(model)
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
    size = model_size(load_config(str(WEIGHTS / "large" / "config.json"))[1], dtype="fp32", visual=None, name="large")
    assert size.cost == model_cost(family_of(large), large)
    assert size.all_bytes == sum(p.numel() * 4 for p in large.parameters())
    assert size.visual == 196


def test_a_model_of_the_generic_adapter_is_sized_with_and_without_its_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    config = default_config("mistral3")
    sized = model_size(config, dtype="fp32", visual=None, name="")
    assert sized.visual == 1024  # patches are merged, which the model's config says and not its tower's
    assert sized.vision_bytes > 0 and sized.vision_flops > 0
    monkeypatch.setattr(GenericFamily, "vision_tower", lambda self, model: None)
    bare = model_size(config, dtype="fp32", visual=9, name="")
    assert (bare.vision_bytes, bare.vision_flops, bare.visual) == (0, 0, 9)
    assert (bare.cost, bare.all_bytes) == (sized.cost, sized.all_bytes)


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
    assert set(HARDWARE) == {"h100", "h200", "a100", "l40s", "4090", "l4"}
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
        (["--text", "0"], "'--text': must be a number from 1 to 100,000,000, got '0'"),
        (["--batch", "0"], "'--batch': must be a number from 1 to 100,000,000, got '0'"),
        (["--visual", "1000000000000"], "'--visual': must be a number from 1 to"),
        (["--gpus", "0"], "'--gpus': must be a whole number of 1 or more, got '0'"),
        (["qwen2.5-vl-70b"], "give a config.json, or qwen2.5-vl-7"),
        (["bert-base"], "or a name of vlmprune plan --list"),
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
