"""What a step costs over long caches: whole and cut, copied in each step and grown in a buffer, within one run.

Caches are filled with random numbers, since a step costs the same whatever they hold. The ideal of a cut is the plain
model over a buffered cache that never held more: the same entries are moved, and nothing is asked of this package.

    python -m eval.speed.cache --out eval/speed/results/cache.json
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import vlmprune
from eval.provenance import provenance, write_record
from eval.speed.models import HEAD, random_llava
from eval.speed.overhead import interleave
from vlmprune.accounting.cache_report import stored_bytes
from vlmprune.hf.buffered_layer import buffer_layers
from vlmprune.hf.cache_state import PrunedPrompt, remember_layers
from vlmprune.hf.compatibility import CACHE

LENGTHS = (4000, 8000, 32000)
FRACTION = 8  # one entry in so many stays
WIDTH, LAYERS = 1024, 4
KEY_HEADS = 4  # of 16, as grouped queries have it
MODEL = f"random LLaVA-like, LM {LAYERS} layers x {WIDTH}, {KEY_HEADS} key heads of {HEAD}, fp32, batch 1"


def filled(entries: int) -> DynamicCache:
    """A cache of so many random entries in every layer."""
    cache = DynamicCache()
    for i in range(LAYERS):
        cache.update(torch.randn(1, KEY_HEADS, entries, HEAD), torch.randn(1, KEY_HEADS, entries, HEAD), i)
    return cache


def cut(cache: DynamicCache, length: int, by_head: bool) -> DynamicCache:
    """The cache of a prompt of `length` tokens of which these entries were left, at other places in each head."""
    entries = cache.layers[0].keys.shape[2]
    heads = KEY_HEADS if by_head else 1
    states = []
    for i in range(LAYERS):
        columns = torch.stack([torch.randperm(length)[:entries].sort().values for _ in range(heads)])[None]
        group = WIDTH // HEAD // heads
        states.append(PrunedPrompt(i, length, columns if by_head else columns[:, 0], False, group=group))
    remember_layers(cache, states)
    return cache


def stepping(model: Any, cache: DynamicCache) -> Callable[[], Any]:
    """One step on the cache, which is then as long as it was."""

    def run() -> None:
        model(input_ids=torch.tensor([[5]]), **{CACHE: cache})
        cache.crop(-1)

    return run


def measure_at(model: Any, length: int, rounds: int) -> dict[str, Any]:
    """Seconds and bytes over a prompt of that length; ratios to the plain step of the same round."""
    few = length // FRACTION
    caches = {"plain": filled(length), "buffered": filled(length), "ideal of the cut": filled(few)}
    wrapped = {"cut, copied": filled(few), "cut, buffered": filled(few), "cut by head, buffered": filled(few)}
    for name, cache in wrapped.items():
        cut(cache, length, "by head" in name)
    for name, cache in {**caches, **wrapped}.items():
        if "buffered" in name or "ideal" in name:
            buffer_layers(cache)
    beside: Any = copy.deepcopy(model)
    runs = {name: stepping(model, cache) for name, cache in caches.items()}
    runs |= {name: stepping(beside, cache) for name, cache in wrapped.items()}
    with vlmprune.wrap(beside, vlmprune.SnapKV(1 / FRACTION)), torch.no_grad():
        seconds = interleave(runs, rounds)
    plain, ideal = (statistics.median(seconds[name]) for name in ("plain", "ideal of the cut"))
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    return {
        "cached": length,
        "kept": few,
        "milliseconds": {name: 1000 * value for name, value in medians.items()},
        "of plain": {name: value / plain for name, value in medians.items()},
        "of the ideal": {name: medians[name] / ideal for name in wrapped},
        "bytes": {name: stored_bytes(cache) for name, cache in {**caches, **wrapped}.items()},
    }


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    sizes: Any = {"num_key_value_heads": KEY_HEADS, "max_position_embeddings": 1 << 16}
    model = random_llava(WIDTH, LAYERS, side=30, **sizes)
    record = {
        "rounds": args.rounds,
        "rows": [measure_at(model, length, args.rounds) for length in args.lengths],
        "provenance": provenance(attention="sdpa", model=MODEL),
    }
    print(json.dumps(record, indent=2))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
