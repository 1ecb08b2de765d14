"""Requests per second and time to first token of vLLM with images pruned inside it, against plain vLLM, in one run.

    python -m eval.serving.in_engine --out FILE    in the environment that .ci/vllm makes, with nothing beside it
    python -m eval.serving.in_engine --tiny        the same in seconds

LLaVAs with random weights whose prompt's prefill dominates, most in the wider ones: a small tower, 784 or 1,936 visual
tokens, one generated token for the time to the first and eight for the rate. Every request has an image of its own, so
no cache helps. Both engines run side by side and take turns, each with a request first that is not counted; what counts
is the ratio of a round. Its ideal is that of the FLOPs of tower and prefill.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval import markdown
from eval.provenance import provenance, write_record

PATCH = 4  # pixels a side
QUESTION = "What colour is the star?"


@dataclass(frozen=True)
class Load:
    """The model's text layers, the side of its tower's grid, and what is asked of it: `singles` one after the other and
    `requests` at once in each of `rounds`."""

    patches: int = 28
    width: int = 1024
    layers: int = 8
    inner: int = 2816
    singles: int = 3
    requests: int = 4
    rounds: int = 5
    keep: float = 0.25


WIDE = {"width": 2048, "inner": 5632}
LOADS = (Load(), Load(**WIDE), Load(patches=44), Load(patches=44, **WIDE))
TINY = (Load(width=64, layers=2, inner=96, singles=1, requests=2, rounds=1),)


def saved_model(load: Load, folder: Path) -> tuple[Any, Any]:
    """A random model, written for vLLM, and its processor."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    import vlmprune
    from vlmprune.serving.export import save_for_vllm

    large, _, processor = vlmprune.load_tiny()
    heads = max(2, load.width // 64)
    text = LlamaConfig(
        vocab_size=large.config.text_config.vocab_size, hidden_size=load.width, intermediate_size=load.inner,
        num_hidden_layers=load.layers, num_attention_heads=heads, num_key_value_heads=heads // 2 or 1,
        head_dim=load.width // heads, max_position_embeddings=2048,
    )  # fmt: skip
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        image_size=PATCH * load.patches, patch_size=PATCH,
    )  # fmt: skip
    config = LlavaConfig(text_config=text, vision_config=tower, image_token_index=large.config.image_token_id)
    model = LlavaForConditionalGeneration(config).eval()
    side = PATCH * load.patches
    processor.patch_size = PATCH
    processor.image_processor.size = processor.image_processor.crop_size = {"height": side, "width": side}
    save_for_vllm(model, folder, processor)
    return model, processor


def flops_ratio(model: Any, processor: Any, load: Load) -> float:
    """FLOPs of tower and prefill, unpruned over pruned."""
    import vlmprune
    from vlmprune.inputs.chat import prepare

    inputs = prepare(processor, noise(0, load), QUESTION)
    with vlmprune.wrap(model, "uniform", keep=load.keep) as pruned:
        model(**inputs)
        report = pruned.report
    tower, config = model.model.vision_tower, model.config.vision_config
    linear = sum(one.numel() for one in tower.parameters() if one.dim() > 1)
    tokens = load.patches**2
    seen = 2 * tokens * (linear + 2 * config.num_hidden_layers * config.hidden_size * tokens)
    return float((seen + report.prefill_flops_full) / (seen + report.prefill_flops))


def noise(seed: int, load: Load) -> Image.Image:
    """An image that no other request has."""
    side = PATCH * load.patches
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8))


def measured(load: Load, folder: Path) -> dict[str, Any]:
    """Rounds of both engines in turns."""
    import vllm

    from vlmprune.inputs.chat import build_messages

    model, processor = saved_model(load, folder)
    ideal = flops_ratio(model, processor, load)
    talk = processor.apply_chat_template(
        build_messages(noise(0, load), QUESTION), add_generation_prompt=True, tokenize=False
    )
    ids, number = processor.tokenizer(talk, add_special_tokens=False)["input_ids"], 0
    settings = {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 8, "block_size": 32,
        "max_num_batched_tokens": 8192,
    }  # fmt: skip
    engines = {
        "plain": vllm.LLM(str(folder), **settings),
        "pruned": vllm.LLM(str(folder), hf_overrides={"vlmprune": {"keep": load.keep}}, **settings),
    }

    def seconds(engine: Any, requests: int, tokens: int) -> float:
        nonlocal number
        prompts = []
        for _ in range(requests):
            number += 1
            prompts.append({"prompt_token_ids": ids, "multi_modal_data": {"image": noise(number, load)}})
        wanted = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        engine.generate(prompts, wanted, use_tqdm=False)
        return time.perf_counter() - start

    def turn(engine: Any) -> dict[str, float]:
        seconds(engine, 1, 1)  # not counted: an engine that was idle for the other's turn is slower at first
        return {
            "first_token": statistics.median(seconds(engine, 1, 1) for _ in range(load.singles)),
            "requests_per_second": load.requests / seconds(engine, load.requests, 8),
        }

    rounds: list[dict[str, dict[str, float]]] = []
    for number_of_round in range(load.rounds + 1):
        order = list(engines) if number_of_round % 2 else list(engines)[::-1]
        found = {name: turn(engines[name]) for name in order}
        if number_of_round:  # the first one warms up
            rounds.append(found)
    first = [one["plain"]["first_token"] / one["pruned"]["first_token"] for one in rounds]
    rate = [one["pruned"]["requests_per_second"] / one["plain"]["requests_per_second"] for one in rounds]
    return {
        "times": rounds,
        "ideal": ideal,
        "first_token_faster": statistics.median(first),
        "requests_per_second_more": statistics.median(rate),
        "of_ideal": {"first_token": statistics.median(first) / ideal, "rate": statistics.median(rate) / ideal},
    }


def main() -> None:
    """Measure, print the ratios and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write the record, as JSON")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights, one round")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    rows = []
    for load in TINY if args.tiny else LOADS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({**vars(load), **measured(load, Path(folder))})
        print(json.dumps({name: value for name, value in rows[-1].items() if name != "times"}), flush=True)
    write_record({"about": provenance(tiny=args.tiny), "rows": rows}, args.out)


def table(record: dict[str, Any]) -> str:
    """Ratios to plain vLLM beside the FLOPs', for the page."""
    heading = (
        "text layers",
        "visual tokens",
        "first token, ms",
        "first token ×",
        "requests a second ×",
        "by FLOPs",
        "of that",
    )
    rows = []
    for row in record["rows"]:
        took = {
            name: 1000 * statistics.median(one[name]["first_token"] for one in row["times"])
            for name in ("plain", "pruned")
        }
        share = row["of_ideal"]
        rows.append([
            f"{row['layers']} × {row['width']}", f"{row['patches'] ** 2:,}",
            f"{took['plain']:.0f} → {took['pruned']:.0f}",
            f"{row['first_token_faster']:.2f}", f"{row['requests_per_second_more']:.2f}", f"{row['ideal']:.2f}",
            f"{share['first_token']:.2f}, {share['rate']:.2f}",
        ])  # fmt: skip
    about, first = record["about"], record["rows"][0]
    text = (
        f"{about['machine']}, transformers {about['transformers']}, commit {about['commit'][:7]}: medians of "
        f"{first['rounds']} rounds in which plain and pruned vLLM take turns; {first['keep']:.0%} of the visual tokens "
        f"stay, every image new. In a turn one request is not counted, {first['singles']} one after the other give the "
        f"time to the first token, {first['requests']} at once the rate."
    )
    return "\n\n".join([markdown.table(heading, rows), markdown.paragraph(text)])


if __name__ == "__main__":
    main()
