"""Prefill and decode of pruned prompts on the CPU against what their FLOPs promise, in turns within one run.

Random-weight LLaVA-like models (language models 8 x 512, 12 x 1024, 16 x 1024; 576, 1,728, 2,880 visual and 64 text
tokens). Tokens are dropped before layer 0 (uniform) and before layer 2 (FastV, its reading of attention included). The
image is encoded before: only the language model is timed, on one thread, by the processor's own seconds (`share`),
which other work on the machine disturbs less than the clock (`wall_share`). `ideal` is the fraction of FLOPs, `over`
the measured fraction over it. Peak memory is that of a process of its own.

    python -m eval.speed.prefill --rounds 5 --out eval/speed/results/prefill.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import vlmprune
from eval.provenance import provenance, write_record
from eval.speed.memory import kib
from eval.speed.models import encoded, random_llava, random_prompt
from vlmprune.accounting.flops import model_cost
from vlmprune.accounting.hardware import Hardware
from vlmprune.accounting.roofline import ModelSize, estimate
from vlmprune.families import family_of
from vlmprune.flow.select import count_for
from vlmprune.hf.arguments import cache_in
from vlmprune.hf.compatibility import CACHE

SIZES = {"8x512": (8, 512), "12x1024": (12, 1024), "16x1024": (16, 1024)}
VISUAL = (576, 1728, 2880)
KEEPS = (0.5, 0.25, 0.1, 0.05)
LAYERS = (0, 2)
SIDE, TEXT, STEPS = 24, 64, 4
LIMITS = {"600 tokens or more": 1.10, "fewer": 1.30, "all but one": 1.01}


def build_model(size: str) -> Any:
    """A language model of that size."""
    torch.manual_seed(0)
    layers, width = SIZES[size]
    return random_llava(width, layers, side=SIDE)


def prompt(model: Any, visual: int) -> dict[str, Any]:
    """Images of noise, encoded, and 64 tokens of text."""
    ids = random_prompt(visual, TEXT)
    return ids | encoded(torch.randn(visual // SIDE**2, SIDE**2, model.config.text_config.hidden_size))


def settings(visual: int) -> dict[str, tuple[float | int, int]]:
    """Budget per image and layer of every row, by name. An image has 576 tokens."""
    rows: dict[str, tuple[float | int, int]] = {}
    for layer in LAYERS:
        rows[f"all but one an image, layer {layer}"] = (SIDE**2 - 1, layer)
        rows |= {f"{keep:.0%}, layer {layer}": (keep, layer) for keep in KEEPS}
    return rows


def method(keep: float | int, layer: int) -> Any:
    """What drops tokens before a layer: before the first there is no attention to read."""
    return vlmprune.FastV(keep=keep, layer=layer) if layer else vlmprune.Uniform(keep=keep)


def run(model: Any, inputs: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of one prefill, of the processor in it, and of the processor in a step after it."""
    start, own = time.perf_counter(), time.process_time()
    out = model(**inputs, use_cache=True, logits_to_keep=1)
    prefill, work = time.perf_counter() - start, time.process_time() - own
    cache, token = cache_in(out), torch.tensor([[7]])
    steps = []
    for _ in range(STEPS):
        own = time.process_time()
        cache = cache_in(model(input_ids=token, use_cache=True, **{CACHE: cache}))
        steps.append(time.process_time() - own)
    return prefill, work, statistics.median(steps)


def measure(size: str, visual: int, rounds: int) -> list[dict[str, Any]]:
    """Every setting of one model and prompt, in turns with the unpruned model."""
    model = build_model(size)
    inputs = prompt(model, visual)
    rows = settings(visual)
    seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ("none", *rows, "none again")}
    reports = {}
    for turn in range(rounds + 1):
        for name in seconds if turn else list(seconds)[:2]:
            if name.startswith("none"):
                took = run(model, inputs)
            else:
                with vlmprune.wrap(model, method(*rows[name])) as pruned:
                    took = run(model, inputs)
                    reports[name] = pruned.report
            if turn:  # the first round warms up, unpruned and wrapped
                seconds[name].append(took)
    found = []
    plain = seconds["none"]
    predicted = predictions(model, visual, rows)
    for name, taken in seconds.items():
        wall, fraction, step = (
            statistics.median(t[clock] / p[clock] for t, p in zip(taken, plain, strict=True)) for clock in range(3)
        )
        report = reports.get(name)
        ideal = report.prefill_flops / report.prefill_flops_full if report else 1.0
        tokens = TEXT + (report.kept_tokens[0] if report else visual)
        found.append(
            {
                "model": size,
                "visual": visual,
                "setting": name,
                "tokens": tokens,
                "wall": statistics.median(t[0] for t in taken),
                "prefill": statistics.median(t[1] for t in taken),
                "step": statistics.median(t[2] for t in taken),
                "wall_share": wall,
                "share": fraction,
                "ideal": ideal,
                "over": fraction / ideal,
                "step_share": step,
                "predicted": predicted.get(name, 1.0),
                "limit": limit(name, tokens),
            }
        )
    return found


def limit(name: str, tokens: int) -> float:
    """The target that a row is held to."""
    if "all but one" in name or name.startswith("none"):
        return LIMITS["all but one"]
    return LIMITS["600 tokens or more" if tokens >= 600 else "fewer"]


def predictions(model: Any, visual: int, rows: dict[str, tuple[float | int, int]]) -> dict[str, float]:
    """The fraction of prefill time that `vlmprune plan` predicts, on this CPU's peaks as they are measured here."""
    text = model.model.language_model
    weights = sum(p.numel() * p.element_size() for p in text.layers.parameters())
    size = ModelSize("", model_cost(family_of(model), model), weights, 1, weights, 0, visual)
    machine = peaks()
    images = visual // SIDE**2
    whole = estimate(size, machine, text=TEXT, new=1, kept=visual, layer=0).prefill
    fractions = {}
    for name, (keep, layer) in rows.items():
        kept = images * count_for(keep, SIDE**2)
        fractions[name] = estimate(size, machine, text=TEXT, new=1, kept=kept, layer=layer).prefill / whole
    return fractions


def peaks() -> Hardware:
    """FLOPs a second of a large product, bytes a second of a large copy."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    block = torch.randn(1 << 25)
    best = []
    for work in (lambda: a @ b, block.clone):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        best.append(min(times))
    return Hardware("cpu", 2 * 1024**3 / best[0], 2 * 4 * (1 << 25) / best[1], 16e9, half_only=False)


def peak_memory(size: str, visual: int, name: str) -> float:
    """MiB that a process of its own has at most, in one prefill: the median of three, which differ by the allocator."""
    command = [sys.executable, "-m", "eval.speed.prefill", "--memory", size, str(visual), name]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    return statistics.median(map(float, runs))


def memory_of(size: str, visual: int, name: str) -> float:
    """What such a process does."""
    model = build_model(size)
    inputs = prompt(model, visual)
    if name == "none":
        model(**inputs, use_cache=True, logits_to_keep=1)
    else:
        with vlmprune.wrap(model, method(*settings(visual)[name])):
            model(**inputs, use_cache=True, logits_to_keep=1)
    return kib("VmHWM") / 1024


def memory(size: str, visual: int) -> list[dict[str, Any]]:
    """Peak memory without pruning, keeping all but one token an image, and keeping a tenth."""
    names = ["none", *(name for name in settings(visual) if name.startswith(("all", "10%")))]
    peak = {name: peak_memory(size, visual, name) for name in names}
    return [
        {"model": size, "visual": visual, "setting": name, "MiB": mib, "growth": mib - peak["none"]}
        for name, mib in peak.items()
    ]


def main() -> None:
    """Measure what was asked for, print it, and write the record after every model and prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="0: memory alone")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--visual", nargs="+", type=int, choices=VISUAL, default=list(VISUAL))
    parser.add_argument("--note", default="", help="what else the machine did, for the record")
    parser.add_argument("--memory", nargs=3, metavar=("SIZE", "VISUAL", "SETTING"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if args.memory:
            print(memory_of(args.memory[0], int(args.memory[1]), args.memory[2]))
            return
        about = provenance(rounds=args.rounds, backend="sdpa, fp32, cpu", text=TEXT, note=args.note)
        record: dict[str, Any] = {"about": about, "limits": LIMITS, "rows": [], "memory": []}
        for size in args.sizes:
            for visual in args.visual if args.rounds else ():
                rows = measure(size, visual, args.rounds)
                record["rows"] += rows
                for row in rows:
                    mark = "" if row["over"] <= row["limit"] else f" above {row['limit']}"
                    print(
                        f"{size:8} {visual:5} {row['setting']:30} {row['tokens']:5} tokens, {row['prefill']:7.3f} s,",
                        f"share {row['share']:.3f} (wall {row['wall_share']:.3f}), ideal {row['ideal']:.3f}, over",
                        f"{row['over']:.3f}, predicted {row['predicted']:.3f}, step {row['step'] * 1000:.1f} ms",
                        f"({row['step_share']:.2f}){mark}",
                        flush=True,
                    )
                write_record(record, args.out)
            record["memory"] += (found := memory(size, max(args.visual)))
            print(*found, sep="\n", flush=True)
        write_record(record, args.out)


if __name__ == "__main__":
    main()
