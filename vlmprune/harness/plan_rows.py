"""The rows of a plan: what pruning would cost and save on given hardware, by roofline, from configs alone."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..accounting.configs import load_config
from ..accounting.hardware import Hardware
from ..accounting.model_sizes import model_size
from ..accounting.roofline import Estimate, ModelSize, estimate, verdict
from ..errors import VlmpruneError
from ..flow.select import check_keep, count_for
from ..methods.base import Pruner
from ..methods.guided import Guided
from .format import percent
from .models import method_class
from .plan_fit import what_fits

Named = tuple[str, Any]  # a model's name and its config


def named(name: str, title: str) -> Named:
    """A published model's config under the title that a page shows."""
    return title, load_config(name)[1]


def llava_7b() -> Named:
    """LLaVA-1.5 7B."""
    return named("llava-1.5-7b", "LLaVA-1.5 7B")


def usual_methods(guide: Any) -> list[str]:
    """The methods of a plan if none are named."""
    return ["random", "fastv", *(["sgl"] if guide is not None else [])]


def planned(
    config: Named,
    guide: Named | None,
    machine: Hardware,
    settings: Sequence[tuple[str, float]],
    layer: float | None,
    *,
    visual: int | None,
    text: int,
    new: int,
    dtype: str,
    batch: int = 1,
    frames: int | None = None,
) -> dict[str, Any]:
    """The whole plan of `batch` requests side by side, JSON-serialisable; `frames`: of a video in place of an image.

    Raises:
        VlmpruneError: a method, a budget or a config that cannot be planned.
    """
    if dtype == "fp32" and machine.half_only:
        raise VlmpruneError(f"the peak of {machine.name!r} is that of bf16; give --hardware custom with its fp32 peak")
    # Report bad budgets and methods before models are built.
    wanted = [(name, _checked_method(name, guide), check_keep(keep)) for name, keep in settings]
    seen: dict[str, Any] = {"dtype": dtype, "visual": visual, "frames": frames}
    size = model_size(config[1], name=config[0], **seen)
    # A given number of visual tokens holds for both; else each model has its own.
    small = model_size(guide[1], name=guide[0], **seen) if guide else None
    prompt = {"text": text, "new": new, "batch": batch}
    rows, verdicts = _rows(size, small, machine, wanted, layer, prompt)

    def requests(visual: int) -> int:
        """How many requests of so many visual tokens fit, nothing dropped later."""
        return estimate(replace(size, visual=visual), machine, kept=visual, layer=0, **prompt).requests

    return {
        "config": size.name,
        "guide": small.name if small else None,
        "hardware": asdict(machine),
        "prompt": {
            "visual": size.visual, "frames": frames, **prompt, "dtype": dtype, "layers": len(size.cost.layers),
        },
        "weights": size.all_bytes,
        "active_weights": size.active_bytes,
        "number_bytes": size.number_bytes,
        "experts": size.expert_share < 1,
        "rows": rows,
        "does_not_fit": what_fits(size, small, machine, rows, batch, requests),
        "sgl": verdicts,
    }  # fmt: skip


Wanted = tuple[str, type[Pruner], float | int]  # a method's name, its class and a budget


def _rows(
    size: ModelSize, small: ModelSize | None, machine: Hardware, wanted: Sequence[Wanted], layer: float | None,
    prompt: dict[str, int],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """A row for each method and budget after the unpruned model's, and whether the guide pays at each budget."""
    layers = len(size.cost.layers)
    full = estimate(size, machine, kept=size.visual, layer=layers, **prompt)
    answer = estimate(small, machine, kept=small.visual, layer=0, **prompt) if small else None
    rows, verdicts = [{"method": "none", "keep": "1.0", **_row(full, full)}], []
    for name, cls, budget in wanted:
        kept = count_for(budget, size.visual)
        where = _layer(cls, layer, budget, kept, size.visual, layers)
        resident = small.all_bytes if name == "sgl" and small else 0
        found = estimate(size, machine, kept=kept, layer=where, resident=resident, **prompt)
        if issubclass(cls, Guided):  # the oracle's guide is the model itself
            found = replace(found, guide=(answer if name == "sgl" and answer else full).total)
        rows.append({"method": name, "keep": str(budget), **_row(found, full)})
        if name == "sgl" and answer is not None:
            verdicts.append({"keep": str(budget), **verdict(full, found, answer)})
    return rows, verdicts


def _row(found: Estimate, full: Estimate) -> dict[str, Any]:
    return {**asdict(found), "total": found.total, "speed_up": full.total / found.total}


def _checked_method(name: str, guide: Any) -> type[Pruner]:
    """The class of a method, which must drop tokens."""
    cls = method_class(name)
    if not issubclass(cls, Pruner):
        raise VlmpruneError(f"the method {name!r} drops no tokens, so there is nothing to plan; name one that does")
    if name == "sgl" and guide is None:
        raise VlmpruneError("the method 'sgl' needs a small model's config; name it with --guide")
    return cls


def _layer(cls: type[Pruner], given: float | None, budget: float | int, kept: int, visual: int, layers: int) -> int:
    """The layer before which the method drops tokens in this model."""
    if given is not None:
        made = Pruner(keep=budget, layer=given)
    elif issubclass(cls, Guided):
        made = Guided(keep=budget if isinstance(budget, float) else kept / visual)
    else:
        made = cls(keep=budget)
    at = made.stage_layers(layers)
    if len(at) > 1:
        raise VlmpruneError(f"the method {cls.name!r} drops tokens at layers {at}, which has no plan; give --layer")
    return int(at[0])


def in_ms(seconds: float) -> str:
    """Milliseconds with three digits: plans reach from microseconds to seconds."""
    ms = seconds * 1000
    return f"{ms:,.0f}" if 1000 <= ms < 1e6 else f"{ms:.3g}" if seconds else "-"


def verdict_in_words(found: dict[str, Any]) -> str:
    """Whether a guide pays, as a sentence."""
    guide, allowed = (f"{in_ms(found[name])} ms" for name in ("guide", "allowed"))
    if found["pays"]:
        return f"pays; the guide takes {guide}, pruning saves {allowed}."
    if found["exits"] is None:
        return f"does not pay; the guide takes {guide}, as long as the large model alone."
    return (
        f"pays only if the guide answers {percent(found['exits'], 1)} of the requests alone; it takes {guide}, pruning "
        f"saves {allowed}."
    )
