"""What the wrap and the probe cost by themselves, as ratios within one run.

Random-weight models (language model of 8 layers, width 512, a prompt of 1,024 tokens) run in turn plain, wrapped
keeping all but one visual token, and probed in one layer; medians of interleaved runs, same attention backend. One is
LLaVA-like, the others are of types without an adapter of their own.

    python -m eval.speed.overhead --out eval/speed/results/overhead.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import vlmprune
from eval.provenance import provenance, write_record
from eval.speed.models import encoded, random_generic, random_llava, random_prompt
from vlmprune.attention.probe import AttentionCall, ProbedLayer, clear_observers, observe

SIDE = 30  # 900 visual tokens
TEXT, WIDTH, LAYERS = 124, 512, 8
GENERIC = ("mistral3", "lighton_ocr")  # types without an adapter of their own
MODEL = "random LLaVA-like and generic ones, LM 8 layers x 512, 1,024 tokens of which 900 visual, fp32"


def interleave(
    runs: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every run in every round, taken in turn so that the machine's drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:  # the first round warms up
                seconds[name].append(clock() - start)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median ratio to the plain run of the same round."""
    plain = seconds["plain"]
    return {name: statistics.median(a / b for a, b in zip(own, plain, strict=True)) for name, own in seconds.items()}


def runs_of(model: Any, inputs: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """The forward of a model plain, wrapped for it, and plain again; and the wrap without a forward."""

    def plain() -> None:
        model(**inputs, use_cache=True)

    def wrapped() -> None:
        with vlmprune.wrap(model, "uniform", keep=SIDE * SIDE - 1):
            model(**inputs, use_cache=True)

    def wrap() -> None:
        with vlmprune.wrap(model, "uniform", keep=SIDE * SIDE - 1):
            pass

    return {"plain": plain, "wrapped": wrapped, "plain_again": plain, "wrap": wrap}


def probed(model: Any, inputs: dict[str, Any]) -> Callable[[], None]:
    """The forward with the probe in its second layer."""
    attention = model.model.language_model.layers[1].self_attn
    rows = torch.tensor([[len(inputs["input_ids"][0]) - 1]])

    def read(call: AttentionCall, output: torch.Tensor) -> None:
        call.weights(rows).mean(dim=1).sum(dim=1)

    def run() -> None:
        probe = ProbedLayer(attention)
        observe(attention, read)
        model(**inputs, use_cache=True)
        clear_observers([attention])
        probe.remove()

    return run


def timed(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Median seconds of each, and median ratios to the plain forward, pair by pair."""
    with torch.no_grad():
        seconds = interleave(runs, rounds)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    return {"median_seconds": medians, "ratio": ratios(seconds)}


def measure(rounds: int) -> dict[str, Any]:
    """Of a family with an adapter of its own, and of two types that go through the generic one."""
    torch.manual_seed(0)
    prompt, features = random_prompt(SIDE * SIDE, TEXT), torch.randn(1, SIDE * SIDE, WIDTH)
    model: Any = random_llava(WIDTH, LAYERS, side=SIDE)
    inputs = {**prompt, **encoded(features)}
    out = {"rounds": rounds, **timed(runs_of(model, inputs) | {"probed": probed(model, inputs)}, rounds), "generic": {}}
    for model_type in GENERIC:
        model = random_generic(model_type, WIDTH, LAYERS)
        out["generic"][model_type] = timed(runs_of(model, {**prompt, **encoded(features)}), rounds)
    return out


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record = {**measure(args.rounds), "provenance": provenance(attention="sdpa", model=MODEL)}
    print(json.dumps(record, indent=2))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
