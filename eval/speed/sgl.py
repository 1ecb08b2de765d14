"""What SGL costs and saves on the clock: none, FastV, SGL and SGL with exits, end to end, in turns within one run.

Two pairs: the bundled one, and a random-weight LLaVA-like pair ten times apart in size that shares one vision tower
(language models 12 x 1024 and 6 x 448, tower 12 x 384, 576 visual tokens, 40 text tokens, 8 generated).

    python -m eval.speed.sgl --rounds 7 --out eval/speed/results/sgl.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import vlmprune
from demos.tiny_vlm.questions import benchmark
from demos.tiny_vlm.vocabulary import GRID
from eval import markdown
from eval.provenance import provenance, write_record
from eval.speed.models import random_llava, random_prompt
from vlmprune.harness.baselines import EXIT_AT
from vlmprune.inputs.chat import prepare

SIDE, PATCH, TEXT, GENERATED = 24, 14, 40, 8
TOWER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
WORDS = 32000
RETENTION = 0.09
RANDOM_NAME = f"random weights, language models 12 x 1024 and 6 x 448, {SIDE * SIDE} visual tokens"
BUNDLED_NAME = f"bundled pair, {GRID * GRID} visual tokens"


def random_model(width: int, layers: int) -> Any:
    """A language model of that size on a 12 x 384 tower; it never ends an answer by itself."""
    model = random_llava(
        width, layers, side=SIDE, patch=PATCH, tower=TOWER, vocab_size=WORDS, intermediate_size=int(width * 2.6875),
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model


def random_pair() -> tuple[Any, Any, list[dict[str, Any]]]:
    """The random-weight pair and one prompt for it."""
    torch.manual_seed(0)
    large, small = random_model(1024, 12), random_model(448, 6)
    small.model.vision_tower.load_state_dict(large.model.vision_tower.state_dict())
    pixels = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH)
    return large, small, [{**random_prompt(SIDE * SIDE, TEXT, vocabulary=WORDS), "pixel_values": pixels}]


def bundled_pair(prompts: int) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The bundled pair and validation questions of four families."""
    large, small, processor = vlmprune.load_tiny()
    families = ("colour", "count", "existence", "digit")
    asked = [pair for family in families for pair in benchmark(family, prompts, "validation")]
    return large, small, [dict(prepare(processor, s.image(), q.text)) for s, q in asked]


def measure(large: Any, small: Any, prompts: list[dict[str, Any]], exit_at: float, rounds: int) -> dict[str, Any]:
    """Seconds of every method on the same prompts, in turns; medians, ratios to `none`, and stages."""
    ways = {
        "none": vlmprune.Unpruned(),
        "random": vlmprune.Random(keep=RETENTION),
        "uniform": vlmprune.Uniform(keep=RETENTION),
        "downsample": vlmprune.Downsample(keep=RETENTION),
        "fastv": vlmprune.FastV(keep=RETENTION, layer=2),
        "sgl": vlmprune.SGL(small, keep=RETENTION, layer=0),
        "sgl + exit": vlmprune.SGL(small, keep=RETENTION, layer=0, exit_at=exit_at),
        "small alone": vlmprune.Unpruned(),
        "none again": vlmprune.Unpruned(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    flops = dict.fromkeys(ways, 0)
    exits = 0
    for turn in range(rounds + 1):
        spent = dict.fromkeys(ways, 0.0)
        for prompt in prompts:
            for name, way in ways.items():
                model = small if name == "small alone" else large
                with vlmprune.wrap(model, way) as pruned:
                    start = time.perf_counter()
                    model.generate(**prompt, max_new_tokens=GENERATED, do_sample=False)
                    spent[name] += time.perf_counter() - start
                if turn:
                    flops[name] += pruned.report.prefill_flops + (pruned.report.guide_flops or 0)
                    exits += sum(pruned.report.exited or []) if name == "sgl + exit" else 0
                    for stage, value in pruned.report.seconds.items():
                        stages[name].setdefault(stage, []).append(value)
        for name, value in spent.items():
            if turn:  # the first round warms up
                seconds[name].append(value / len(prompts))
    language = {  # prefill and decode, without the vision tower
        name: statistics.median(map(sum, zip(parts["prefill"], parts["decode"], strict=True)))
        for name, parts in stages.items()
        if len(parts.get("prefill", [])) == rounds * len(prompts)
    }
    return {
        "prompts": len(prompts),
        "exits": exits / (rounds * len(prompts)),
        "flops_share": {name: spent / flops["none"] for name, spent in flops.items()},
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "speed_up": {
            name: statistics.median(n / s for n, s in zip(seconds["none"], values, strict=True))
            for name, values in seconds.items()
        },
        "language_model_seconds": language,
        "language_model_speed_up": {name: language["none"] / value for name, value in language.items()},
        "stages": {
            name: {stage: statistics.median(values) for stage, values in parts.items()}
            for name, parts in stages.items()
        },
    }


def table(record: dict[str, Any]) -> str:
    """Markdown, for SGL's page: speed-ups over the unpruned model, and prefill FLOPs with the guide's."""
    names = [name for name in record["random"]["speed_up"] if name not in ("none", "none again")]
    lines = []
    for pair, name in (("random", RANDOM_NAME), ("bundled", BUNDLED_NAME)):
        found = record[pair]
        ends = {one: f"{found['speed_up'][one]:.2f}" for one in names}
        ends["sgl + exit"] += f" ({found['exits']:.0%} exits)" if found["exits"] else " (no exits)"
        # With exits there is a language model's time for some of the prompts only.
        alone = [f"{x:.2f}" if (x := found["language_model_speed_up"].get(one)) else "-" for one in names]
        lines += [[f"{name}: end to end", *ends.values()], ["its language model alone", *alone]]
        if "flops_share" in found:
            lines.append(["its prefill FLOPs", *(f"{found['flops_share'][one]:.0%}" for one in names)])
    return markdown.table(["pair", *names], lines)


def main() -> None:
    """Measure both pairs and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=5, help="of each of four families, for the bundled pair")
    parser.add_argument("--exit-at", type=float, default=EXIT_AT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        result = {
            "about": provenance(rounds=args.rounds, backend="sdpa, fp32, cpu", keep=RETENTION, exit_at=args.exit_at),
            "bundled": measure(*bundled_pair(args.prompts), args.exit_at, args.rounds),
            "random": measure(*random_pair(), 1.0, args.rounds),
        }
    write_record(result, args.out)
    print(table(result))


if __name__ == "__main__":
    main()
