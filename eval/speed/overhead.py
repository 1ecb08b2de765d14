"""What the wrap and the probe cost by themselves, as ratios within one run.

A random-weight LLaVA-like model (language model of 8 layers, width 512, a prompt of 1,024 tokens) runs in turn plain,
wrapped keeping all but one visual token, and probed in one layer; medians of interleaved runs, same attention backend.

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
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlmprune
from eval.provenance import provenance
from vlmprune.attention.probe import AttentionCall, ProbedLayer, clear_observers, column_sums, observe

IMAGE_TOKEN = 3
SIDE = 30  # 900 visual tokens
TEXT = 124
MODEL = "random LLaVA-like, LM 8 layers x 512, 1,024 tokens of which 900 visual, fp32"


def build_model() -> LlavaForConditionalGeneration:
    """LM 8 x 512; the tower is as small as can be, it is no part of what is measured."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE * 4,
        patch_size=4,
    )
    text = LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=1024,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def prompt() -> dict[str, Any]:
    """One picture of noise and 124 tokens of text."""
    ids = torch.cat([torch.tensor([1]), torch.full((SIDE * SIDE,), IMAGE_TOKEN), torch.randint(10, 1000, (TEXT - 1,))])
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "pixel_values": torch.randn(1, 3, SIDE * 4, SIDE * 4),
    }


def language_model_inputs(model: LlavaForConditionalGeneration, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same prompt with its picture encoded before, so that only the language model is timed."""
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=inputs["pixel_values"])
    return {k: v for k, v in inputs.items() if k != "pixel_values"} | {"mm_encoder_outputs": {"image": features}}


def interleave(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every run in every round, taken in turn so that the machine's drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(rounds: int) -> dict[str, Any]:
    """Median ratios to the plain forward, pair by pair."""
    model = build_model()
    inputs = language_model_inputs(model, prompt())
    attention = model.model.language_model.layers[1].self_attn
    rows = torch.tensor([[len(inputs["input_ids"][0]) - 1]])

    def plain() -> None:
        model(**inputs, use_cache=True)

    def wrapped() -> None:
        with vlmprune.wrap(model, "uniform", keep=SIDE * SIDE - 1):
            model(**inputs, use_cache=True)

    def read(call: AttentionCall, output: torch.Tensor) -> None:
        column_sums(call.weights(rows))

    def probed() -> None:
        probe = ProbedLayer(attention)
        observe(attention, read)
        model(**inputs, use_cache=True)
        clear_observers([attention])
        probe.remove()

    with torch.no_grad():
        seconds = interleave({"plain": plain, "wrapped": wrapped, "probed": probed, "plain_again": plain}, rounds)
    ratios = {
        name: statistics.median(t / p for t, p in zip(seconds[name], seconds["plain"], strict=True)) for name in seconds
    }
    return {"rounds": rounds, "median_seconds": {k: statistics.median(v) for k, v in seconds.items()}, "ratio": ratios}


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record = {**measure(args.rounds), "provenance": provenance(attention="sdpa", model=MODEL)}
    print(json.dumps(record, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
