"""On the device itself: pruned equals masked, under every attention kernel it has, and VAR equals its reference.

Models and references are the test suite's: tiny random families, `tests/support/reference.py`, and for VAR the loops of
`tests/support/sinks.py` on the CPU. Shapes: B batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from itertools import product
from typing import Any

import torch
import transformers.utils
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import vlmprune
from tests.ops.cases import FAR_OFF
from tests.support.planted import Planted, counts
from tests.support.reference import language_model, masked_logits, visual_slots
from tests.support.running import generate, plan_of
from tests.support.sinks import LAYERS as PLANTED_LAYERS
from tests.support.sinks import planted, var_twin
from tests.support.tiny_families import Inputs, build, make_inputs, row
from vlmprune.hf.arguments import to_device

from .stage import ABSENT, FAILED, PASSED, Emit, GpuStage, Point, StageSetting, short

FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "qwen3_vl")
VAR_FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "smolvlm")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SDPA = {
    "torch's choice": None,
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
TAKES_A_MASK = ("torch's choice", "math", "efficient")  # the reference needs one
BESIDE_SDPA = ("flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
STEPS, LAYERS = 4, (0, 2)
SINGLE_BOUND = 1e-4
SINGLE_REASON = "of the largest logit: fp32 sums in another order, TF32 off; on a CPU the tests allow 1e-5"
HALF_TIMES = 3
HALF_REASON = f"{HALF_TIMES} times what bf16 changes in the unpruned or the masked model: each side is off by that"


def groups(tiny: bool) -> list[str]:
    """A family in a precision, VAR on a family, an attention implementation beside SDPA."""
    if tiny:
        return ["llava fp32", "qwen2_5_vl bf16", "var gemma3", "flash_attention_2"]
    single, half = ([f"{family} {dtype}" for family in FAMILIES] for dtype in DTYPES)
    # FlexAttention compiles for long, so it begins early.
    return [*single, BESIDE_SDPA[0], *half, *(f"var {family}" for family in VAR_FAMILIES), *BESIDE_SDPA[1:]]


def run(group: str, setting: StageSetting, emit: Emit) -> None:
    """Check a group."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    first, *others = group.split()
    if first == "var":
        check_var(others[0], setting, emit)
    elif first in BESIDE_SDPA:
        check_beside(first, setting, emit)
    else:
        check_family(first, others[0], setting, emit)


# --- models and what they compute ----------------------------------------------------------------------------------


@cache
def model_of(family: str, setting: StageSetting, dtype: str, attention: str = "sdpa", all_keys: bool = False) -> Any:
    """A family's model on the device, made once a process. `all_keys`: as many key heads as heads."""
    text = {"num_key_value_heads": 4} if all_keys else None
    return there(build(family, attn=attention, text=text), setting.device, DTYPES[dtype])


def there(model: Any, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model on the device, its parameters in a precision; buffers, as rotary frequencies, stay in fp32."""
    model.to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def prompts(model: Any, kind: str) -> Inputs:
    """Three prompts of different lengths, padded left, or the second of them alone, on the CPU."""
    inputs = make_inputs(model)
    return inputs if kind == "padded" else row(inputs, 1)


def moved(model: Any, inputs: Inputs) -> Inputs:
    """The inputs on the model's device, in its precision."""
    return Inputs(to_device(model, inputs))


@contextmanager
def masks_in_precision(model: Any) -> Iterator[None]:
    """The reference writes its masks in fp32; the attention kernels want them as the states are."""

    def cast(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs["attention_mask"]
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if mask is not None and mask.is_floating_point():
            kwargs["attention_mask"] = mask.clamp(min=torch.finfo(hidden.dtype).min).to(hidden.dtype)
        return args, kwargs

    layers: Any = language_model(model).layers
    handles = [layer.self_attn.register_forward_pre_hook(cast, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def masked(model: Any, inputs: Inputs, plan: Any, layer: int, tokens: Tensor) -> Tensor:
    """The masked model's logits [B, steps, vocabulary] along given tokens, on its own device."""
    with torch.device(model.device), masks_in_precision(model):
        return masked_logits(model, moved(model, inputs), plan, layer, tokens.shape[1], tokens).float()


def pruned(model: Any, inputs: Inputs, plan: Any, layer: int, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """The pruned model's logits [B, steps, vocabulary] and the tokens it generated."""
    with vlmprune.wrap(model, Planted(plan=plan, layer=layer)):
        logits, out = generate(model, moved(model, inputs), steps=steps)
    return logits.float(), out.sequences[:, -steps:]


def apart(a: Tensor, b: Tensor) -> float:
    """Largest difference; NaN is far off."""
    return float((a.cpu() - b.cpu()).abs().double().nan_to_num(nan=FAR_OFF, posinf=FAR_OFF).max())


def forced(kernel: str) -> AbstractContextManager[Any]:
    """Within the block SDPA runs this kernel, or raises."""
    backend = SDPA[kernel]
    return nullcontext() if backend is None else sdpa_kernel(backend)


# --- pruned = masked -----------------------------------------------------------------------------------------------


def check_family(family: str, dtype: str, setting: StageSetting, emit: Emit) -> None:
    """Every kernel of SDPA, padded and alone, before the first layer and in the middle."""
    kernels = ["torch's choice", "math"] if setting.tiny else list(SDPA)
    for kernel in kernels:
        for kind, layer in product(("padded", "alone"), LAYERS):
            point = {"point": f"{kernel}, {kind}, layer {layer}", "family": family, "dtype": dtype, "kernel": kernel}
            work = partial(check_kernel, family, dtype, kernel, kind, layer, setting)
            plain = partial(run_plain, family, dtype, kernel, kind, setting) if SDPA[kernel] is not None else None
            emit({**point, **checked(work, plain)})
    if dtype == "fp32":
        point = {"point": "FastV keeps what the attention map says", "family": family, "dtype": dtype}
        emit({**point, **checked(partial(check_fastv, family, setting))})


def checked(work: Callable[[], Point], plain: Callable[[], Any] | None = None) -> Point:
    """What a check found; an error is a failure, unless the `plain` model cannot run under that kernel either."""
    try:
        return work()
    except Exception as error:
        failed = {"status": FAILED, "error": short(error)}
        if plain is None:
            return failed
    try:
        plain()
    except Exception as error:
        return {"status": ABSENT, "error": f"nor does the plain model run: {short(error, frames=1)}"}
    return failed


def run_plain(family: str, dtype: str, kernel: str, kind: str, setting: StageSetting) -> None:
    """The unwrapped model under a forced kernel of SDPA, or under an implementation beside it."""
    beside = kernel in BESIDE_SDPA
    model = model_of(family, setting, dtype, kernel if beside else "sdpa", kernel == "efficient")
    with nullcontext() if beside else forced(kernel):
        generate(model, moved(model, prompts(model, kind)), steps=2)


def check_kernel(family: str, dtype: str, kernel: str, kind: str, layer: int, setting: StageSetting) -> Point:
    """One case. Grouped queries would be refused by the efficient kernel, so it gets as many key heads as heads."""
    model, exact = (model_of(family, setting, name, all_keys=kernel == "efficient") for name in (dtype, "fp32"))
    inputs = prompts(model, kind)
    plan = plan_of(model, inputs, "ragged")
    with forced(kernel):
        logits, tokens = pruned(model, inputs, plan, layer)
    beside = kernel if kernel in TAKES_A_MASK else "math"
    with forced(beside):
        wanted = masked(model, inputs, plan, layer, tokens)

        def changed() -> dict[str, float]:
            everything = [range(count) for count in counts(model, inputs)]
            whole = apart(masked(model, inputs, everything, 0, tokens), masked(exact, inputs, everything, 0, tokens))
            return {
                "bf16_of_unpruned": whole, "bf16_of_masked": apart(wanted, masked(exact, inputs, plan, layer, tokens))
            }  # fmt: skip

        return judged(logits, wanted, dtype, f"masked, {beside}", changed)


def judged(
    logits: Tensor, wanted: Tensor, dtype: str, reference: str, changed: Callable[[], dict[str, float]]
) -> Point:
    """Logits beside those of the masked model.

    Args:
        changed: asked only in bf16: what that precision changes by itself, in each of the models compared.
    """
    found: Point = {"worst": apart(logits, wanted), "reference": reference}
    if dtype == "fp32":
        found |= {"bound": SINGLE_BOUND * max(1.0, float(wanted.abs().max())), "reason": SINGLE_REASON}
    else:
        halves = changed()
        found |= {**halves, "reason": HALF_REASON, "bound": HALF_TIMES * max(halves.values())}
    return {"status": PASSED if found["worst"] <= found["bound"] else FAILED, **found}


def check_fastv(family: str, setting: StageSetting) -> Point:
    """What FastV keeps, read by the Triton kernel, against the eager map of the layer before."""
    layer, keep = 2, 0.5
    eager, model = (model_of(family, setting, "fp32", attention) for attention in ("eager", "sdpa"))
    inputs = prompts(eager, "padded")
    with torch.no_grad():
        maps = eager(**moved(eager, inputs), output_attentions=True, use_cache=False).attentions[layer - 1].float()
    with torch.no_grad(), vlmprune.wrap(model, vlmprune.FastV(keep=keep, layer=layer)) as handle:
        model(**moved(model, inputs))
        kept = handle.report.kept
    gap = 0.0  # how far a token that was dropped is above one that was kept: ties may fall either way
    for sample, slots in enumerate(visual_slots(model, inputs)):
        received = maps[sample, :, -1].mean(dim=0).cpu()[slots]
        dropped = torch.ones(len(slots), dtype=torch.bool)
        dropped[kept[sample].cpu()] = False
        gap = max(gap, float(received[dropped].max() - received[~dropped].min()))
    return {"status": PASSED if gap <= 1e-6 else FAILED, "worst": gap, "bound": 1e-6, "reason": "ties of fp32 sums"}


# --- VAR -----------------------------------------------------------------------------------------------------------


def check_var(family: str, setting: StageSetting, emit: Emit) -> None:
    """VAR alone, and behind a pruner, against the loops on the CPU."""
    for layer in (None,) if setting.tiny else (None, 2):
        name = "VAR" if layer is None else f"VAR, pruned before layer {layer}"
        point = {"point": name, "family": family, "dtype": "fp32"}
        emit({**point, **checked(partial(check_one_var, family, layer, setting))})


def check_one_var(family: str, layer: int | None, setting: StageSetting) -> Point:
    """One case."""
    model, eager = there(planted(family), setting.device), planted(family, "eager")
    inputs = make_inputs(eager, text_lengths=(12, 17, 14))
    plan = None if layer is None else plan_of(eager, inputs, "ragged")
    methods: list[Any] = [] if plan is None else [Planted(plan=plan, layer=layer or 0)]
    with vlmprune.wrap(model, [*methods, vlmprune.VAR()]):
        logits, out = generate(model, moved(model, inputs), steps=STEPS)
    plain, _ = generate(model, moved(model, inputs), steps=STEPS)
    tokens = out.sequences[:, -STEPS:].cpu()
    kept: Any = [[] for _ in inputs["input_ids"]] if plan is None else plan
    above = PLANTED_LAYERS if layer is None else layer  # nothing is masked from the layer behind the last one on
    with var_twin(eager, inputs, kept=plan, layer=above).on():
        wanted = masked_logits(eager, inputs, kept, above, STEPS, tokens)
    bound, moves = SINGLE_BOUND * max(1.0, float(wanted.abs().max())), apart(logits, plain)
    worst = apart(logits, wanted)
    ok = worst <= bound and moves > 1e-2
    return {
        "status": PASSED if ok else FAILED, "worst": worst, "bound": bound, "reason": SINGLE_REASON,
        "changes_logits_by": moves, "reference": "loops over eager maps, fp32, CPU",
    }  # fmt: skip


# --- kernels beside SDPA -------------------------------------------------------------------------------------------


def missing(implementation: str, setting: StageSetting) -> str | None:
    """Why an attention implementation is not here."""
    if implementation == "flex_attention":
        return "it is compiled, which --tiny leaves out" if setting.tiny else None
    if setting.tiny:
        return "it needs a GPU"
    here = getattr(transformers.utils, f"is_flash_attn_{implementation[-1]}_available", None)
    return None if here is not None and here() else "its package is not installed"


def check_beside(implementation: str, setting: StageSetting, emit: Emit) -> None:
    """LLaVA under FlexAttention or FlashAttention; the reference is SDPA's math kernel, masked."""
    if reason := missing(implementation, setting):
        emit({"point": implementation, "kernel": implementation, "status": ABSENT, "error": reason})
        return
    dtypes = ("bf16", "fp32") if implementation == "flex_attention" else ("bf16",)
    for dtype, kind in product(dtypes, ("alone", "padded")):
        point = {"point": f"{dtype}, {kind}, layer 2", "family": "llava", "dtype": dtype, "kernel": implementation}
        work = partial(check_one_beside, implementation, dtype, kind, setting)
        emit({**point, **checked(work, partial(run_plain, "llava", dtype, implementation, kind, setting))})


def check_one_beside(implementation: str, dtype: str, kind: str, setting: StageSetting) -> Point:
    """One case; two tokens, since FlexAttention compiles for every new shape."""
    model = model_of("llava", setting, dtype, implementation)
    same, exact = (model_of("llava", setting, name) for name in (dtype, "fp32"))
    inputs = prompts(same, kind)
    plan = plan_of(same, inputs, "ragged")
    logits, tokens = pruned(model, inputs, plan, 2, steps=2)
    with forced("math"):
        wanted = masked(same, inputs, plan, 2, tokens)

        def changed() -> dict[str, float]:
            return {"bf16_of_masked": apart(wanted, masked(exact, inputs, plan, 2, tokens))}

        return judged(logits, wanted, dtype, "masked, math", changed)


def headlines(points: Sequence[Point]) -> list[str]:
    """Per kernel and precision the case that comes nearest to its bound; what is absent and why."""
    worst: dict[str, Point] = {}
    gone: dict[str, str] = {}
    for point in points:
        name = f"{point.get('kernel', 'VAR, FastV')} {point.get('dtype', '')}".strip()
        if "worst" in point:
            worst[name] = max(worst.get(name, point), point, key=lambda one: one["worst"] / max(one["bound"], 1e-30))
        elif point["status"] == ABSENT:
            gone[name] = point["error"]
    lines = [
        f"{name}: worst {one['worst']:.1e} of {one['bound']:.1e} allowed ({one.get('family')}, {one['point']})"
        for name, one in worst.items()
    ]
    return lines + [f"{name}: absent: {why}" for name, why in gone.items() if name not in worst]


STAGE = GpuStage("conformance", 75, groups, run, side_by_side=min(12, os.cpu_count() or 1))
