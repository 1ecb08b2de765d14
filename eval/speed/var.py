"""What VAR costs beside the plain fused kernel, and what a naive eager VAR costs, as ratios within one run.

A random-weight LLaVA-like model (language model of 8 layers, width 512, a prompt of 2,048 tokens of which 64 are text
after the image) with massive activations planted in its first token and eight visual ones, so that every eligible layer
has sinks and lets every head through: the most that VAR can have to do. Prefill, a decode step on that prompt's cache,
and peak memory (each variant in a process of its own); medians of interleaved runs.

    python -m eval.speed.var --out eval/speed/results/var.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import vlmprune
from eval.provenance import provenance, write_record
from eval.speed.memory import forget_peak, kib
from eval.speed.models import encoded, random_llava, random_prompt
from eval.speed.overhead import interleave, ratios
from vlmprune.hf.arguments import cache_in
from vlmprune.hf.compatibility import CACHE

SIDE, TEXT, LAYERS, WIDTH = 44, 64, 8, 512
VISUAL = SIDE * SIDE
BEFORE = 2048 - VISUAL - TEXT  # BOS and words in front of the image
SINK_DIMS, SINKS = (77, 300), tuple(range(100, VISUAL, 240))  # planted
MODEL = "random LLaVA-like, LM 8 layers x 512, 2,048 tokens of which 1,936 visual and 64 text after them, fp32"
VARIANTS = ("plain", "var", "eager", "eager_var")
NAIVE = "vlmprune_naive_var"


def build(attention: str) -> Any:
    """The model, whose first token is a massive activation."""
    torch.manual_seed(0)
    model = random_llava(WIDTH, LAYERS, side=SIDE, attention=attention, max_position_embeddings=4096)
    with torch.no_grad():
        model.get_input_embeddings().weight[1, list(SINK_DIMS)] = 50.0  # BOS
    return model


def prompt() -> dict[str, Any]:
    """BOS and words, an encoded image with its sinks, a question."""
    torch.manual_seed(1)
    ids = random_prompt(VISUAL, BEFORE + TEXT, before=BEFORE)
    features = torch.randn(VISUAL, WIDTH) * 0.02
    features[torch.tensor(SINKS)[:, None], torch.tensor(SINK_DIMS)] = 50.0
    return ids | encoded([features])


def naive_var(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float = 1.0, **_: Any) -> Any:
    """Eager attention with VAR as the papers' code does it: the whole map, edited, times the values (p = 0.4)."""
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    maps = torch.softmax(scores, dim=-1, dtype=torch.float32)
    if 2 <= module.layer_idx <= LAYERS - 2:
        visual = torch.arange(BEFORE, BEFORE + VISUAL)
        sunk = torch.tensor([0, *(BEFORE + s for s in SINKS)])
        free = visual[~torch.isin(visual, sunk)]
        rows = maps[:, :, -TEXT:] if query.shape[2] > 1 else maps
        image, on_free = rows[..., visual].sum(-1), rows[..., free].sum(-1)
        chosen = ((image >= 0.2) & (on_free >= 0.5 * image))[..., None]
        budget = 0.4 * rows[..., sunk].sum(-1, keepdim=True) * chosen
        given = rows[..., free] * (1 + budget / on_free[..., None])
        rows[..., sunk] *= torch.where(chosen, 0.6, 1.0)
        rows[..., free] = given
    return (maps.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


@contextmanager
def on(model: Any, variant: str) -> Iterator[None]:
    """The model as this variant runs it."""
    if variant == "eager_var":
        ALL_ATTENTION_FUNCTIONS[NAIVE] = naive_var
        modules = [layer.self_attn for layer in model.model.language_model.layers]
        own = [module.config for module in modules]
        for module in modules:
            module.config = copy.copy(module.config)
            module.config._attn_implementation_internal = NAIVE
        yield
        for module, config in zip(modules, own, strict=True):
            module.config = config
        del ALL_ATTENTION_FUNCTIONS[NAIVE]
        return
    with vlmprune.wrap(model, vlmprune.VAR()) if variant == "var" else nullcontext():
        yield


def runs(models: dict[str, Any], inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is timed: a prefill and a decode step for every variant; refused unless both VARs compute the same."""
    outputs = {v: models[v](**inputs, use_cache=True) for v in VARIANTS}
    caches = {v: cache_in(out) for v, out in outputs.items()}
    torch.testing.assert_close(outputs["var"].logits, outputs["eager_var"].logits, rtol=0, atol=1e-4)
    assert not torch.allclose(outputs["var"].logits, outputs["plain"].logits, rtol=0, atol=1e-3)
    step = {
        "input_ids": torch.tensor([[20]]),
        "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 1, dtype=torch.long),
    }

    def prefill(variant: str) -> Callable[[], None]:
        return lambda: models[variant](**inputs, use_cache=True, logits_to_keep=1)

    def decode(variant: str) -> Callable[[], None]:
        def run() -> None:
            cache = caches[variant]
            models[variant](**step, **{CACHE: cache})
            cache.crop(-1)  # the same length every time

        return run

    return {v: prefill(v) for v in VARIANTS}, {v: decode(v) for v in VARIANTS}


def measure(rounds: int) -> dict[str, Any]:
    """Ratios of time and of memory."""
    inputs = prompt()
    models = {v: build("eager" if v.startswith("eager") else "sdpa") for v in VARIANTS}
    with torch.no_grad(), on(models["var"], "var"), on(models["eager_var"], "eager_var"):
        sinks = vlmprune.find_sinks(models["plain"], **inputs).samples[0]
        prefill, decode = runs(models, inputs)
        then, first = interleave(decode, 10 * rounds), interleave(prefill, rounds)
    memory = {v: peak(v) for v in VARIANTS}
    return {
        "rounds": rounds,
        "visual_sinks": [len(found) for found in sinks.visual_sinks],
        "gated_heads": [len(found) for found in sinks.gated_heads],
        "prefill": {"seconds": {v: statistics.median(first[v]) for v in VARIANTS}, "ratio": ratios(first)},
        "decode": {"seconds": {v: statistics.median(then[v]) for v in VARIANTS}, "ratio": ratios(then)},
        "memory": {"MiB": memory, "ratio": {v: memory[v] / memory["plain"] for v in VARIANTS}},
    }


def peak(variant: str) -> float:
    """Memory in MiB that a second prefill adds to a process of its own (median of three)."""
    # Freed blocks go back to the system at once, so that resident memory is what is in use.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "eval.speed.var", "--memory", variant]
    found = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True).stdout
    return float(found)


def own_peak(variant: str) -> float:
    """In this process: the peak over what was resident before."""
    inputs, model = prompt(), build("eager" if variant.startswith("eager") else "sdpa")
    peaks = []
    with torch.no_grad(), on(model, variant):
        model(**inputs, use_cache=True, logits_to_keep=1)
        for _ in range(3):
            forget_peak()
            before = kib("VmRSS")
            model(**inputs, use_cache=True, logits_to_keep=1)
            peaks.append((kib("VmHWM") - before) / 1024)
    return statistics.median(peaks)


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", choices=VARIANTS, help="only this variant's peak memory, in MiB")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.memory:
        print(own_peak(args.memory))
        return
    record = {**measure(args.rounds), "provenance": provenance(attention="sdpa and eager", model=MODEL)}
    print(json.dumps(record, indent=2))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
