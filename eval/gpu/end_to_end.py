"""What pruning saves on the clock: models of LLaVA-1.5's shape with random weights, in bf16 on SDPA.

The prompt's text alone is measured in the same rounds: what its prefill takes, no pruning can go below, since a small
forward takes as long as the host needs to launch its kernels.

Unpruned and pruned runs take turns, round by round, and a setting's points are written after each round. 2,880 visual
tokens are five images of 576 in one prompt. One `generate` gives everything: marks on the stream before it, where the
language model begins, and after every forward.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import vlmprune
from eval.speed.models import IMAGE_TOKEN, random_prompt

from .measure import GpuClock, card, fresh, memory, ratio, spread
from .stage import ABSENT, CUT, FAILED, MEASURED, Emit, GpuStage, StageSetting, short

# Width, width inside, layers, heads, key heads: Vicuna's two sizes; TinyLlama's as a guide of one billion.
SIZES = {
    "7B": (4096, 11008, 32, 32, 32),
    "13B": (5120, 13824, 40, 40, 40),
    "guide": (2048, 5632, 22, 32, 4),
    "tiny": (64, 128, 4, 4, 4),
}
TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
TINY_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS, TEXT, DECODED = 32064, 64, 4
GUIDE_STEPS = (1, 8)  # the prompt alone, and with a decode; the guide takes no more than the caller asks for
KEEPS = (0.25, 0.10, 0.50, 0.05, 1.0)  # most telling first
SGL_KEEP = 0.18  # the paper's middle budget
LEAST_LEFT = 3.0  # seconds; the longest run takes one or two
PLANTED, HEIGHT, EVERY = (5, 40), 1000.0, 9  # sink dimensions, and every which visual token is one


@dataclass
class TimedMethod:
    """A way to run a model, and what came of its rounds, in milliseconds."""

    name: str
    method: Any
    inputs: dict[str, Tensor] | None = None  # where they are others than the rest's
    taken: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, Any] = field(default_factory=dict)
    report: Any = None

    def on(self, model: Any) -> AbstractContextManager[Any]:
        """The model as this method runs it."""
        return nullcontext() if self.method is None else vlmprune.wrap(model, self.method)


class Timed:
    """A model whose language model and forwards leave marks."""

    def __init__(self, size: str, setting: StageSetting) -> None:
        self.device, self.tiny, self.clock = setting.device, setting.tiny, GpuClock(setting.device)
        self.model = random_model("tiny" if setting.tiny else size, setting)
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.model.model.language_model.register_forward_pre_hook(lambda *_: self.begun.append(self.clock.mark()))
        self.model.register_forward_hook(lambda *_: self.ended.append(self.clock.mark()))

    def run(self, inputs: dict[str, Tensor], tokens: int) -> dict[str, float]:
        """A prompt, its first token and that many more."""
        self.begun.clear()
        self.ended.clear()
        fresh(self.device)
        start = self.clock.mark()
        self.model.generate(**inputs, max_new_tokens=tokens + 1, do_sample=False)
        self.clock.synchronise()
        between = self.clock.between
        return {
            "before_language_model": between(start, self.begun[0]),
            "prefill": between(self.begun[0], self.ended[0]),
            "first_token": between(start, self.ended[0]),
            "decode_a_token": between(self.ended[0], self.ended[-1]) / tokens,
        }


def random_model(size: str, setting: StageSetting) -> Any:
    """LLaVA-1.5 with CLIP-L/14 at 336 pixels, made on the device."""
    width, inside, layers, heads, key_heads = SIZES[size]
    tower, pixels, patch = (TINY_TOWER, 24, 4) if setting.tiny else (TOWER, 336, 14)
    text = LlamaConfig(
        hidden_size=width, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=key_heads, vocab_size=WORDS, max_position_embeddings=4096,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    vision = CLIPVisionConfig(**tower, image_size=pixels, patch_size=patch)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    torch.manual_seed(setting.seed)
    with torch.device(setting.device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def prompt(model: Any, batch: int, images: int, setting: StageSetting) -> tuple[dict[str, Tensor], int]:
    """Prompts of that many images and `TEXT` further tokens each; visual tokens of a prompt."""
    vision = model.config.vision_config
    visual = images * (vision.image_size // vision.patch_size) ** 2
    torch.manual_seed(setting.seed)
    rows = [random_prompt(visual, 8 if setting.tiny else TEXT) for _ in range(batch)]
    inputs = {name: torch.cat([one[name] for one in rows]).to(setting.device) for name in rows[0]}
    shape = (batch * images, 3, vision.image_size, vision.image_size)
    return {**inputs, "pixel_values": torch.randn(shape, dtype=torch.bfloat16).to(setting.device)}, visual


def text_of(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prompts without their images."""
    rows = inputs["input_ids"]
    return {name: inputs[name][rows != IMAGE_TOKEN].view(len(rows), -1) for name in ("input_ids", "attention_mask")}


def compete(
    timed: Timed, title: str, methods: Sequence[TimedMethod], inputs: dict[str, Tensor], rounds: int,
    setting: StageSetting, emit: Emit, tokens: int = DECODED,
) -> None:  # fmt: skip
    """All methods in turns; the first one, plain, is what the others are compared with. One that breaks leaves."""
    running = list(methods)
    for turn in range(rounds + 1):  # the first round warms up and compiles
        for one in tuple(running):
            if setting.left() < LEAST_LEFT:
                if turn < 2:  # no round is whole
                    emit({"point": f"{title}: whole", "status": CUT, "error": "the stage's time was over"})
                return
            try:
                with one.on(timed.model) as handle:
                    taken = timed.run(one.inputs or inputs, tokens)
                    one.report = None if handle is None else handle.report
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # the others are measured all the same
                emit({"point": f"{title}: {one.name}", "status": FAILED, "error": short(error)})
                running.remove(one)
                continue
            one.peak = memory(setting.device)
            for name, value in taken.items() if turn else ():
                one.taken.setdefault(name, []).append(value)
        for one in running if turn else ():
            emit(point_of(title, one, methods[0]))


def point_of(title: str, one: TimedMethod, plain: TimedMethod) -> dict[str, Any]:
    """What a method came to, beside the plain run of the same rounds."""
    point: dict[str, Any] = {"point": f"{title}: {one.name}", "status": MEASURED}
    point["milliseconds"] = {name: spread(values) for name, values in one.taken.items()}
    point.update(one.peak)
    if one is not plain and plain.taken:
        point["faster"] = {name: ratio(values, plain.taken[name]) for name, values in one.taken.items()}
    if one.report is not None:
        report = one.report
        ideal = report.prefill_flops_full / report.prefill_flops
        point |= {"visual_tokens": report.visual_tokens[0], "kept_tokens": report.kept_tokens[0]}
        point |= {"prefill_flops": report.prefill_flops, "prefill_flops_full": report.prefill_flops_full}
        point["ideal_faster"] = round(ideal, 4)
        if "faster" in point:
            point["of_ideal"] = round(point["faster"]["prefill"] / ideal, 4)
        busy = report.prefill_flops / statistics.median(one.taken["prefill"]) * 1000
        point["teraflops_a_second"] = round(busy / 1e12, 2)
        point["report_seconds"] = {name: round(value, 5) for name, value in report.seconds.items()}
        if report.guide_flops is not None:
            point["guide_flops"] = report.guide_flops
        if report.notes:
            point["notes"] = report.notes
    return point


def grid(timed: Timed, size: str, batch: int, images: int, setting: StageSetting, emit: Emit) -> None:
    """Every budget, before the first layer (uniform) and before the third (FastV)."""
    inputs, visual = prompt(timed.model, batch, images, setting)
    methods = [TimedMethod("unwrapped", None), TimedMethod("its text alone", None, text_of(inputs))]
    for keep in KEEPS if size != "13B" else KEEPS[:2]:
        methods.append(TimedMethod(f"keep {keep:.0%}, layer 2", vlmprune.FastV(keep=keep, layer=2)))
        methods.append(TimedMethod(f"keep {keep:.0%}, layer 0", vlmprune.Uniform(keep=keep, layer=0)))
    title = f"{size}, batch {batch}, {visual} visual tokens"
    compete(timed, title, methods, inputs, rounds_of(setting, 3 if batch > 1 else 5), setting, emit)


def rounds_of(setting: StageSetting, rounds: int) -> int:
    """One with `--tiny`."""
    return 1 if setting.tiny else rounds


def overhead(timed: Timed, size: str, setting: StageSetting, emit: Emit) -> None:
    """What the wrap costs where it saves nothing: all visual tokens but one are kept."""
    inputs, visual = prompt(timed.model, 1, 1, setting)
    methods = [
        TimedMethod("unwrapped", None),
        TimedMethod("keep V - 1, layer 0", vlmprune.Uniform(keep=visual - 1, layer=0)),
        TimedMethod("keep V - 1, layer 2", vlmprune.FastV(keep=visual - 1, layer=2)),
        TimedMethod("wrapped by 'none'", vlmprune.Unpruned()),
    ]
    compete(timed, f"{size}, overhead", methods, inputs, rounds_of(setting, 9), setting, emit)


def var(timed: Timed, size: str, setting: StageSetting, emit: Emit) -> None:
    """VAR over SDPA, on massive activations planted in BOS and every ninth visual token, with which every head is
    edited: the most that it can have to do."""
    model, dims = timed.model, list(PLANTED)
    embedding = model.get_input_embeddings()

    def plant(module: Any, args: Any, output: Tensor) -> Tensor:
        output[..., ::EVERY, dims] = HEIGHT
        return output

    with torch.no_grad():
        before = embedding.weight[1].clone()
        embedding.weight[1, dims] = HEIGHT
    handle = model.model.multi_modal_projector.register_forward_hook(plant)
    try:
        for images in (1,) if setting.tiny else (1, 5):
            inputs, visual = prompt(model, 1, images, setting)
            methods = [TimedMethod("unwrapped", None), TimedMethod("VAR", vlmprune.VAR(sink_dims=PLANTED))]
            title = f"{size}, VAR, {visual} visual tokens"
            compete(timed, title, methods, inputs, rounds_of(setting, 7), setting, emit)
    finally:
        handle.remove()
        with torch.no_grad():
            embedding.weight[1] = before


def sgl(timed: Timed, size: str, setting: StageSetting, emit: Emit) -> None:
    """A guide of one billion on the same tower, ranking from the prompt alone and from eight tokens of its answer."""
    guide = random_model("tiny" if setting.tiny else "guide", setting)
    guide.model.vision_tower.load_state_dict(timed.model.model.vision_tower.state_dict())
    for images in (1,) if setting.tiny else (1, 5):
        inputs, visual = prompt(timed.model, 1, images, setting)
        methods = [TimedMethod("unwrapped", None)]
        for steps in GUIDE_STEPS:
            method = vlmprune.SGL(guide, keep=SGL_KEEP, guide_steps=steps)
            methods.append(TimedMethod(f"SGL, {steps} guide steps", method))
        methods.append(TimedMethod("FastV", vlmprune.FastV(keep=SGL_KEEP, layer=2)))
        title = f"{size}, SGL at {SGL_KEEP:.0%}, {visual} visual tokens"
        compete(timed, title, methods, inputs, rounds_of(setting, 5), setting, emit, max(GUIDE_STEPS))


def groups(tiny: bool) -> list[str]:
    """A model each."""
    return ["tiny"] if tiny else ["7B", "13B"]


def run(group: str, setting: StageSetting, emit: Emit) -> None:
    """Everything on one model, most telling first."""
    if setting.left() < 20.0:
        emit({"point": group, "status": ABSENT, "error": "no time was left for this size"})
        return
    emit({"point": "card, idle", "status": MEASURED, "card": card()})
    try:
        timed = Timed(group, setting)
    except torch.OutOfMemoryError:
        emit({"point": group, "status": ABSENT, "error": "its weights do not fit the memory of this device"})
        return
    parameters = sum(p.numel() for p in timed.model.parameters())
    emit({"point": "weights", "status": MEASURED, "parameters": parameters, **memory(setting.device)})
    steps: list[tuple[Callable[..., None], tuple[int, ...]]] = [(grid, (1, 1)), (grid, (1, 5))]
    if group != "13B":
        steps += [(overhead, ()), (var, ()), (sgl, ())]
    steps += [(grid, (8, 1)), (grid, (8, 5))]
    with torch.no_grad():
        for step, sizes in steps[:1] + steps[2:-2] if setting.tiny else steps:
            name = " ".join(map(str, (step.__name__, *sizes)))
            try:
                step(timed, group, *sizes, setting, emit)
            except torch.OutOfMemoryError:
                emit({"point": name, "status": ABSENT, "error": "it does not fit the memory of this device"})
                torch.cuda.empty_cache()
            except Exception as error:  # the next step may still run
                emit({"point": name, "status": FAILED, "error": short(error)})
            emit({"point": f"card, after {name}", "status": MEASURED, "card": card()})


def headlines(points: Sequence[dict[str, Any]]) -> list[str]:
    """Prefill, first token and decode of what is asked most, beside the ideal."""
    lines = []
    for point in points:
        faster = point.get("faster")
        if faster and any(word in point["point"] for word in ("alone", "keep 25%", "keep 10%", "V - 1", "VAR", "SGL")):
            ideal = f" (ideal {point['ideal_faster']:.2f})" if "ideal_faster" in point else ""
            first, decode = faster["first_token"], faster["decode_a_token"]
            prefill = f"prefill x {faster['prefill']:.2f}{ideal}"
            lines.append(f"{point['point']}: {prefill}, first token x {first:.2f}, decode x {decode:.2f}")
        elif point["status"] == ABSENT:
            lines.append(f"{point['point']}: absent: {point['error']}")
    return lines


STAGE = GpuStage("end_to_end", 100, groups, run, whole=False)
