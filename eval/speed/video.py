"""A clip of 6,000 tokens on the clock: every method's time against its FLOPs, and SGL whose guide sees fewer frames.

Random weights, CPU, fp32, one thread, in turns within one run; seconds are the processor's. `share`: what the prefill
takes of the unpruned one's, choosing the tokens included; `ideal`: the fraction of FLOPs of the language model,
choosing not counted; `over`: the one over the other. Features of a clip of scenes are handed over, so that the tower
does not run. Methods that read a tower of one token per patch run on an image of as many tokens, its tower tiny. Layers
are as wide inside as Qwen2.5-VL 7B's for their width; 48 of them cost half as much per number of a token as that model
does, so that comparing all tokens with all weighs twice as much here.

SGL: `generate` from pixels, both towers tiny; the guide has a tenth of the weights and sees a quarter of the frames.

    python -m eval.speed.video --out eval/speed/results/video.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vlmprune
from eval import markdown
from eval.provenance import provenance, write_record
from eval.speed.models import HEAD, random_llava
from eval.speed.sgl import faster
from eval.speed.video_scale import clip, committed, made, methods
from vlmprune.methods.base import Pruner

FRAMES, SIDE, TEXT, KEEP = 31, 14, 64, 0.1  # 6,076 tokens
LAYERS, WIDTH, INNER = 48, 1024, 16 / 3
GUIDE = (19, 512)  # layers and width: a tenth of the weights of the layers
FEWER, ANSWER = 4, 16  # the guide sees one frame of so many; tokens of the answer
MOST, SGL_LEAST = 1.05, 3.0  # of `over`, and of the speed-up of SGL
VIDEO, IMAGE, START, END = 1001, 1002, 1003, 1004
# They run the whole model before, or another one beside: no matter of choosing.
LEFT_OUT = ("fastv-oracle", "sgl")


def video_model(layers: int, width: int) -> Any:
    """A model like Qwen2-VL, its tower tiny."""
    heads = width // HEAD
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [HEAD // 8, 3 * HEAD // 16, 3 * HEAD // 16]}
    text = {
        "hidden_size": width, "intermediate_size": int(width * INNER), "num_hidden_layers": layers, "vocab_size": 1024,
        "num_attention_heads": heads, "num_key_value_heads": heads, "rope_parameters": rope,
        "max_position_embeddings": 1 << 15, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    tower = {"depth": 1, "embed_dim": 64, "hidden_size": width, "num_heads": 2, "mlp_ratio": 1, "patch_size": 4}
    ids = {"video_token_id": VIDEO, "image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END}
    config = AutoConfig.for_model("qwen2_vl", text_config=text, vision_config=tower, tie_word_embeddings=False, **ids)
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()


def video_prompt(frames: int, side: int, text: int) -> dict[str, Any]:
    """A clip of `frames` x `side` x `side` tokens and a question, without the clip's pixels."""
    words = torch.randint(10, 1000, (text - 3,), generator=torch.Generator().manual_seed(3))
    clip_ids = torch.tensor([1, START, *[VIDEO] * (frames * side**2), END])
    ids = torch.cat([clip_ids, words])[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).long(),
        "video_grid_thw": torch.tensor([[frames, 2 * side, 2 * side]]),
    }


def handed_over(frames: int, side: int, width: int) -> dict[str, Any]:
    """The clip as the vision stage would hand it over."""
    return {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=[clip(frames, side, width)])}}


def pixels(frames: int, side: int) -> torch.Tensor:
    """Patches of a clip whose frames change little."""
    make = torch.Generator().manual_seed(4)
    still = torch.randn(1, 4 * side**2, 3 * 2 * 4 * 4, generator=make)
    return (still + 0.2 * torch.randn(frames, *still.shape[1:], generator=make)).flatten(0, 1)


def image_case(layers: int, width: int, visual: int) -> tuple[Any, dict[str, Any]]:
    """A model like LLaVA whose only image has about as many tokens, and a prompt for it from pixels."""
    side = round(visual**0.5)
    more: Any = {"max_position_embeddings": 1 << 15, "intermediate_size": int(width * INNER)}
    model: Any = random_llava(width, layers, side=side, **more)
    ids = torch.cat([torch.tensor([1]), torch.full((side**2,), 3), torch.arange(10, 10 + TEXT - 1)])[None]
    image = torch.randn(1, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(5))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": image}


def busy(run: Callable[[], Any]) -> float:
    """Processor seconds of one run."""
    start = time.process_time()
    run()
    return time.process_time() - start


def shares(model: Any, inputs: dict[str, Any], ways: dict[str, Pruner], rounds: int) -> list[dict[str, Any]]:
    """Every method's prefill in turns with the unpruned one."""
    seconds: dict[str, list[float]] = {name: [] for name in ("none", *ways)}
    ideal, chosen = {}, {}
    inputs = inputs | {"use_cache": True, "logits_to_keep": 1}
    for turn in range(rounds + 1):
        for name in seconds if turn else list(seconds)[1:2]:  # one of them warms up
            way = ways.get(name)
            with vlmprune.wrap(model, "none" if way is None else way) as pruned:
                took = busy(lambda: model(**inputs))
                report = pruned.report
            if turn:
                seconds[name].append(took)
            ideal[name] = report.prefill_flops / report.prefill_flops_full
            chosen[name] = report.seconds.get("score", 0.0)
    found = []
    for name in ways:
        share = statistics.median(a / b for a, b in zip(seconds[name], seconds["none"], strict=True))
        over = share / ideal[name]
        row = {"method": name, "seconds": statistics.median(seconds[name]), "share": share, "ideal": ideal[name]}
        found.append({**row, "over": over, "choosing": chosen[name]})
        above = "" if over <= MOST else f" above {MOST}"
        print(
            f"{name:24} {statistics.median(seconds[name]):7.2f} s {share:.3f} of {ideal[name]:.3f}: {over:.3f}{above}"
        )
    print(f"{'none':24} {statistics.median(seconds['none']):7.2f} s")
    return found


def all_shares(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Of the methods that run on clips, and of those that need a tower of one token per patch."""
    names = [name for name in args.methods or methods() if name.partition(",")[0] not in LEFT_OUT]
    ways = {name: made(name, KEEP) for name in names}
    towers = {name: way for name, way in ways.items() if way.reads_vision}
    rows = []
    if clips := {name: way for name, way in ways.items() if name not in towers}:
        model = video_model(args.layers, args.width)
        inputs = video_prompt(args.frames, args.side, TEXT) | handed_over(args.frames, args.side, args.width)
        rows += shares(model, inputs, clips, args.rounds)
        del model  # 4 GB
    if towers:
        rows += shares(*image_case(args.layers, args.width, args.frames * args.side**2), towers, args.rounds)
    return rows


def guided(args: argparse.Namespace) -> dict[str, Any]:
    """`generate` unpruned and with SGL, in turns; the guide gets one frame of `FEWER`."""
    large = video_model(args.layers, args.width)
    small = video_model(args.guide[0], args.guide[1])
    whole = video_prompt(args.frames, args.side, TEXT)
    shown = pixels(args.frames, args.side).view(args.frames, -1, 3 * 2 * 4 * 4)
    few = shown[FEWER // 2 :: FEWER]
    inputs = whole | {"pixel_values_videos": shown.flatten(0, 1)}
    brief = video_prompt(len(few), args.side, TEXT) | {"pixel_values_videos": few.flatten(0, 1)}
    settings = {"max_new_tokens": args.answer, "do_sample": False, "eos_token_id": None}
    seconds: dict[str, list[float]] = {"none": [], "sgl": []}
    for _ in range(args.rounds):
        with vlmprune.wrap(large, "none"):
            seconds["none"].append(busy(lambda: large.generate(**inputs, **settings)))
        with vlmprune.wrap(large, vlmprune.SGL(small, keep=KEEP, layer=0, guide_steps=1)) as pruned:
            seconds["sgl"].append(busy(lambda: large.generate(**inputs, guide_inputs=brief, **settings)))
    weights = [sum(p.numel() for p in model.model.language_model.layers.parameters()) for model in (large, small)]
    found = {
        "speed_up": faster(seconds)["sgl"],
        "seconds": {name: statistics.median(own) for name, own in seconds.items()},
        "weights": weights,
        "frames": [args.frames, len(few)],
        "answer": args.answer,
        "stages": pruned.report.seconds,
    }
    print(f"SGL, the guide sees {len(few)} of {args.frames} frames: {found['speed_up']:.2f} times as fast")
    return found


def in_docs() -> str:
    """The page's table and a sentence about SGL, of the committed record."""
    found = committed("video")
    if found is None:
        return markdown.paragraph("Not measured yet: `python -m eval.speed.video` makes the table.")
    lines = [
        [f"`{row['method']}`", f"{row['share']:.3f}", f"{row['ideal']:.3f}", f"{row['over']:.2f}"]
        for row in found["rows"]
    ]
    text = markdown.table(["method", "fraction of time", "fraction of FLOPs", "one over the other"], lines)
    if guided := found.get("sgl"):
        text += "\n\n" + markdown.paragraph(
            f"SGL, whose guide has {guided['weights'][1] / guided['weights'][0]:.0%} of the weights and sees "
            f"{guided['frames'][1]} of {guided['frames'][0]} frames, answers with {guided['answer']} tokens "
            f"{guided['speed_up']:.2f} times as fast as the unpruned model."
        )
    return text


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--side", type=int, default=SIDE, help="a frame has side x side tokens")
    parser.add_argument("--guide", type=int, nargs=2, default=GUIDE, metavar=("LAYERS", "WIDTH"))
    parser.add_argument("--answer", type=int, default=ANSWER)
    parser.add_argument("--without-sgl", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    shape = {name: getattr(args, name) for name in ("rounds", "layers", "width", "frames", "side", "guide")}
    with torch.no_grad():
        about = provenance(**shape, keep=KEEP, backend="sdpa, fp32, cpu", limits={"over": MOST, "sgl": SGL_LEAST})
        record: dict[str, Any] = {"about": about, "rows": all_shares(args)}
        if not args.without_sgl:
            record["sgl"] = guided(args)
    write_record(record, args.out)


if __name__ == "__main__":
    main()
