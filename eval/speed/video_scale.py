"""What choosing tokens costs in a long video: memory and time of every method on 25,088 tokens as wide as a 7B model's.

No model runs: a clip of scenes is made of random features, 128 frames of 14 x 14 tokens of width 3,584 in fp32, and
each method decides on it as it does inside of a model, all of its stages, and what is left is gathered. Each has a
process of its own. `extra` is how much its memory grows at most while it does so; `seconds` are the processor's, on one
thread, and `share` is their fraction of the prefill of Qwen2.5-VL 7B's language model that the method saves: its FLOPs
at the rate at which this machine runs the prefill of a small model (8 x 1024, 1,024 tokens, fp32). What a method reads
of attention, keys, tower or guide is random here; reading it is a matter of `eval.speed.video`.

    python -m eval.speed.video_scale --out eval/speed/results/video_scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vlmprune
from eval import markdown
from eval.provenance import provenance, write_record
from eval.speed.memory import forget_peak, kib
from eval.speed.models import encoded, random_llava, random_prompt
from vlmprune.accounting.flops import ModelCost
from vlmprune.accounting.model_sizes import model_size
from vlmprune.flow.locate import ImageGrid, dealt, video_grid
from vlmprune.flow.prompt_state import PromptState, VisionStats
from vlmprune.flow.stage import merged
from vlmprune.flow.transfer import transfer
from vlmprune.harness.plan_rows import named
from vlmprune.methods.base import Pruner
from vlmprune.methods.registry import CLASSES
from vlmprune.ops.gather import gather_rows
from vlmprune.runtime.decide import Decider

FRAMES, SIDE, WIDTH, KEEP, TEXT, BEFORE = 128, 14, 3584, 0.1, 64, 20
LIMITS = {"extra": 1000.0, "share": 0.05}  # MB, and of the prefill that is saved
MODEL = ("qwen2.5-vl-7b", "Qwen2.5-VL 7B")
SCENE = 16  # frames
KEYS, TOWER = (4, 128), (72, 1152)  # heads and width of keys; width of one head of SigLIP's, and of all
# What a method is given beyond its name; a further name for one with other options.
OPTIONS: dict[str, dict[str, Any]] = {
    "temporal, kept": {"against": "kept"},
    "fastv, frames by text": {"frames": "text"},
    "semantic, top-p": {"top_p": 0.9},
    "sgl": {"guide": object()},
    "sgl, diversity": {"guide": object(), "diversity": 1.0},
}


def methods() -> list[str]:
    """All that prune, and some with other options."""
    names = [cls.name for cls in CLASSES if issubclass(cls, Pruner)]
    return [*names, *(name for name in OPTIONS if name not in names)]


def made(name: str, keep: float) -> Pruner:
    """A method by its name here."""
    cls: Any = vlmprune.list_methods()[name.partition(",")[0]]
    pruner: Pruner = cls(keep=keep, **OPTIONS.get(name, {}))
    return pruner


def clip(frames: int, side: int, width: int) -> Tensor:
    """Features [V, D] of scenes: most places stand still through one, the others change from frame to frame."""
    make = torch.Generator().manual_seed(0)
    out = torch.empty(frames, side * side, width)
    moves = torch.rand(side * side, 1, generator=make) < 0.2
    for at in range(frames):
        if at % SCENE == 0:
            scene = torch.randn(-(side**2 // -4), width, generator=make).repeat_interleave(4, dim=0)  # neighbours alike
        noise = torch.randn(side * side, width, generator=make)
        out[at] = torch.where(moves, noise, scene[: side * side] + 0.4 * noise)
    return out.flatten(0, 1)


def prompt(frames: int, side: int, width: int) -> tuple[PromptState, Tensor]:
    """A prompt of that clip and some text, with what any method reads, and its hidden states [1, S, D]."""
    visual = frames * side**2
    make = torch.Generator().manual_seed(1)
    hidden = torch.empty(1, visual + TEXT, width)
    hidden[0, BEFORE : BEFORE + visual] = clip(frames, side, width)
    for part in (slice(0, BEFORE), slice(BEFORE + visual, None)):
        hidden[0, part] = torch.randn(hidden[0, part].shape, generator=make)
    grid = video_grid(frames, side, side)
    ids = torch.randint(10, 1000, hidden.shape[:2], generator=make)
    state = PromptState(
        input_ids=ids,
        valid=torch.ones_like(ids, dtype=torch.bool),
        layouts=[dealt(BEFORE + torch.arange(visual), [grid])],
        device=torch.device("cpu"),
        prompt_length=ids.shape[1],
    )
    return state, hidden


def look(pruner: Pruner, state: PromptState, few: ImageGrid) -> None:
    """Fill in what the method reads; a guide saw so many frames only, and what it found is moved to the others."""
    make = torch.Generator().manual_seed(2)
    (layout,) = state.layouts
    if pruner.reads_attention:
        state.attention = torch.rand(1, state.length, generator=make) ** 4
    if pruner.reads_keys:
        state.keys = torch.randn(1, KEYS[0], state.length, KEYS[1], generator=make)
    if pruner.reads_vision:
        received = torch.softmax(4 * torch.randn(layout.count, generator=make), dim=0)
        keys = torch.randn(layout.count, TOWER[pruner.vision_as_one], generator=make)
        state.vision = [VisionStats(received, keys)]
    if pruner.title in ("sgl", "fastv-oracle"):
        source = dealt(torch.arange(few.count), [few])
        state.importance = transfer([torch.rand(few.count, generator=make) ** 4], [source], [layout])


def norm(states: Tensor) -> Tensor:
    """A language model's last norm."""
    return torch.nn.functional.rms_norm(states, states.shape[-1:])


def decide(pruner: Pruner, state: PromptState, hidden: Tensor, layers: int, few: ImageGrid) -> list[tuple[int, int]]:
    """Run all stages, gathering after each: from which layer on how many tokens are left."""
    found = []
    stages = pruner.stage_layers(layers, state.layouts)
    decider = Decider(pruner, stages, state, last_norm=norm)
    decider.ask_query_positions(hidden)
    for layer in stages:
        look(pruner, state, few)
        stage = decider.decide(layer, hidden)
        if stage.inner is not None:
            hidden = gather_rows(merged(hidden, stage), stage.inner)
        found.append((layer, hidden.shape[1]))
    return found


def one(name: str, frames: int, side: int, width: int, keep: float, layers: int) -> dict[str, Any]:
    """Memory and time of one method, in a process that does nothing else."""
    pruner = made(name, keep)
    small = prompt(4, side, width)
    decide(pruner, *small, layers, video_grid(1, side, side))  # what is loaded once is no matter of length
    state, hidden = prompt(frames, side, width)
    few = video_grid(max(1, frames // 4), side, side)
    forget_peak()
    before, start = kib("VmRSS"), time.process_time()
    stages = decide(pruner, state, hidden, layers, few)
    seconds = time.process_time() - start
    kept, extra = len(state.stages[-1].kept[0]), (kib("VmHWM") - before) * 1024 / 1e6
    return {"method": name, "kept": kept, "stages": stages, "seconds": seconds, "extra": extra}


def saved(cost: ModelCost, tokens: int, stages: list[tuple[int, int]]) -> float:
    """FLOPs of the prefill that a method saves."""
    rows = [[next((n for at, n in reversed(stages) if at <= i), tokens)] for i in range(len(cost.layers))]
    none = [[0]] * len(rows)
    return cost.flops([[tokens]] * len(rows), none) - cost.flops(rows, none)


def rate(width: int = 1024, layers: int = 8, side: int = 31) -> float:
    """FLOPs a second of the prefill of a small model on one thread, the best of three."""
    torch.manual_seed(0)
    model: Any = random_llava(width, layers, side=side)
    inputs = random_prompt(side**2, 63) | encoded(torch.randn(1, side**2, width))
    best = []
    with vlmprune.wrap(model, "none") as plain, torch.no_grad():
        for _ in range(4):
            start = time.process_time()
            model(**inputs, use_cache=True, logits_to_keep=1)
            best.append(plain.report.prefill_flops / (time.process_time() - start))
    return max(best[1:])


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every method, each from a process of its own."""
    cost = model_size(named(*MODEL)[1], dtype="bf16", visual=SIDE**2, name=MODEL[1]).cost
    speed = rate()
    rows = []
    for name in args.methods or methods():
        words = [name, args.frames, args.side, args.width, args.keep, len(cost.layers)]
        command = [sys.executable, "-m", "eval.speed.video_scale", "--one", *map(str, words)]
        # What is freed goes back at once: else the heap grows by holes that no block fits into.
        around = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=around).stdout)
        row["saved_seconds"] = saved(cost, args.frames * args.side**2 + TEXT, row["stages"]) / speed
        row["share"] = row["seconds"] / row["saved_seconds"]
        row["above"] = [key for key, limit in LIMITS.items() if row[key] > limit]
        rows.append(row)
        above = f" above the limit of {', '.join(row['above'])}" if row["above"] else ""
        print(f"{name:24} {row['extra']:7.0f} MB {row['seconds']:8.2f} s {row['share']:8.4f} of what it saves{above}")
    return rows


def in_docs() -> str:
    """The page's table, of the committed record."""
    found = committed("video_scale")
    if found is None:
        return markdown.paragraph("Not measured yet: `python -m eval.speed.video_scale` makes the table.")
    lines = [
        [f"`{row['method']}`", f"{row['extra']:,.0f}", f"{row['seconds']:.1f}", f"{100 * row['share']:.2f} %"]
        for row in found["rows"]
    ]
    columns = ["method", "extra memory, MB", "seconds of one CPU thread", "of the prefill that it saves"]
    return markdown.table(columns, lines)


def committed(name: str) -> Any:
    """A record of this folder; None where there is none yet."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="all by default")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--side", type=int, default=SIDE, help="a frame has side x side tokens")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--keep", type=float, default=KEEP)
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        if args.one:
            name, frames, side, width, keep, layers = args.one
            print(json.dumps(one(name, int(frames), int(side), int(width), float(keep), int(layers))))
            return
        shape = {"frames": args.frames, "side": args.side, "width": args.width, "keep": args.keep}
        about = provenance(**shape, backend="fp32, cpu", model=MODEL[1], limits=LIMITS)
        record = {"about": about, "rows": measure(args)}
    write_record(record, args.out)


if __name__ == "__main__":
    main()
