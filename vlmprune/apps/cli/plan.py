"""``vlmprune plan``: what pruning would cost and save on a GPU, from a model's config alone."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import VlmpruneError
from ...harness.format import amount, console, print_json, share
from ...harness.measure import at_least_one
from ...harness.models import PACKAGE, method_class, quiet
from ...harness.parse import number
from .options import JsonOption, LayerOption

BUDGETS = ("1.0", "0.5", "0.25", "0.1", "0.05")
Named = tuple[str, Any]  # a model's name and its config
BUNDLED = PACKAGE / "tiny" / "weights"


def plan(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", show_default=False, help="A model's folder or config.json; none: the bundled pair's."
        ),
    ] = None,
    guide: Annotated[
        Path | None,
        typer.Option("--guide", metavar="CONFIG", show_default=False, help="The small model's, for the row of sgl."),
    ] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="h100, a100, 4090, l4, or custom with the three peaks.")
    ] = "h100",
    flops: Annotated[
        float | None, typer.Option("--flops", show_default=False, help="With custom: FLOPs a second, as 989e12.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", show_default=False, help="With custom: bytes a second, as 3.35e12.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", show_default=False, help="With custom: bytes, as 80e9.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", metavar="NAME", show_default="random, fastv, sgl", help="May be given several times."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="K", show_default=" ".join(BUDGETS[1:]), help="May be given several times."),
    ] = None,
    layer: LayerOption = None,
    visual: Annotated[
        int | None,
        typer.Option("--visual", metavar="N", show_default="the config's", help="Visual tokens of the picture."),
    ] = None,
    text: Annotated[int, typer.Option("--text", metavar="N", help="Text tokens of the prompt.")] = 64,
    new: Annotated[int, typer.Option("--new", metavar="N", help="Tokens generated.")] = 32,
    dtype: Annotated[str, typer.Option("--dtype", help="bf16, fp16 or fp32.")] = "bf16",
    json: JsonOption = False,
) -> None:
    """Estimate FLOPs, cache, time and requests that fit, by roofline, without weights or a GPU."""
    from ...accounting.hardware import hardware as peaks

    machine = peaks(hardware, flops=flops, bandwidth=bandwidth, memory=memory)
    for option, value in (("--text", text), ("--new", new), ("--visual", 1 if visual is None else visual)):
        at_least_one(option, value)
    if config is None:
        config, guide = BUNDLED / "large", guide or BUNDLED / "small"
    settings = [(name, text_of_keep) for name in method or usual(guide) for text_of_keep in keep or BUDGETS[1:]]
    with quiet():
        made = planned(
            _read(config), None if guide is None else _read(guide), machine, settings, layer,
            visual=visual, text=text, new=new, dtype=dtype,
        )  # fmt: skip
    if json:
        print_json(made)
    else:
        _show(made, machine)


def _read(path: Path) -> Named:
    from ...accounting.model_sizes import read_config

    return str(path), read_config(path)


def usual(guide: Any) -> list[str]:
    """The methods of a plan for which none was named."""
    return ["random", "fastv", *(["sgl"] if guide is not None else [])]


def planned(
    config: Named,
    guide: Named | None,
    machine: Any,
    settings: list[tuple[str, str]],
    layer: str | None,
    *,
    visual: int | None,
    text: int,
    new: int,
    dtype: str,
) -> dict[str, Any]:
    """The whole plan, JSON-serialisable.

    Raises:
        VlmpruneError: a method, a budget or a config that cannot be planned.
    """
    from ...accounting.model_sizes import DTYPES, model_size
    from ...accounting.roofline import estimate, verdict
    from ...flow.select import check_keep, count_for

    if dtype not in DTYPES:
        raise VlmpruneError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    if dtype == "fp32" and machine.half_only:
        raise VlmpruneError(f"the peak of {machine.name!r} is that of bf16; give --hardware custom with its fp32 peak")
    # A bad budget or method is said before models are built.
    wanted = [(name, _checked_method(name, guide), check_keep(number("--keep", k) or 0), k) for name, k in settings]
    size = model_size(config[1], dtype=dtype, visual=visual, name=config[0])
    small = None
    if guide is not None:
        # A picture is the same for both where it was given; else each model has its own number of tokens.
        small = model_size(guide[1], dtype=dtype, visual=visual, name=guide[0])
    prompt = {"text": text, "new": new}
    layers = len(size.cost.layers)
    full = estimate(size, machine, kept=size.visual, layer=layers, **prompt)
    answer = estimate(small, machine, kept=small.visual, layer=0, **prompt) if small else None
    rows = [{"method": "none", "keep": "1.0", **_row(full, full)}]
    verdicts = []
    for name, cls, budget, written in wanted:
        kept = count_for(budget, size.visual)
        guided = _is_guided(cls)
        by = full if guided and name != "sgl" else answer  # the oracle's guide is the model itself
        resident = small.all_bytes if guided and name == "sgl" and small else 0
        where = _layer(cls, number("--layer", layer), budget, kept, size.visual, layers)
        found = estimate(size, machine, kept=kept, layer=where, resident=resident, **prompt)
        if guided and by is not None:
            found = replace(found, guide=by.total)
        rows.append({"method": name, "keep": written, **_row(found, full)})
        if name == "sgl" and answer is not None:
            said = verdict(full, found, answer)
            verdicts.append({"keep": written, **asdict(said), "pays": said.pays})
    return {
        "config": size.name,
        "guide": small.name if small else None,
        "hardware": asdict(machine),
        "prompt": {"visual": size.visual, **prompt, "dtype": dtype, "layers": layers},
        "weights": size.all_bytes,
        "rows": rows,
        "sgl": verdicts,
    }


def _row(found: Any, full: Any) -> dict[str, Any]:
    return {**asdict(found), "total": found.total, "speed_up": full.total / found.total}


def _is_guided(cls: type) -> bool:
    from ...methods.guided import Guided

    return issubclass(cls, Guided)


def _checked_method(name: str, guide: Any) -> type:
    """A method that drops tokens."""
    from ...methods.base import Pruner

    cls = method_class(name)
    if not issubclass(cls, Pruner):
        raise VlmpruneError(f"the method {name!r} drops no tokens, so there is nothing to plan; name one that does")
    if name == "sgl" and guide is None:
        raise VlmpruneError("the method 'sgl' needs a small model's config; name it with --guide")
    return cls


def _layer(cls: Any, given: float | None, budget: float | int, kept: int, visual: int, layers: int) -> int:
    """Where the method drops tokens in this model."""
    from ...accounting.model_sizes import share_of_layers
    from ...methods.base import Pruner

    if given is None and _is_guided(cls):
        return share_of_layers(budget, kept, visual, layers)
    made = Pruner(keep=budget, layer=given) if given is not None else cls(keep=budget)
    at = made.stage_layers(layers)
    if len(at) > 1:
        raise VlmpruneError(f"the method {cls.name!r} drops tokens at layers {at}, which has no plan; give --layer")
    return int(at[0])


def _show(made: dict[str, Any], machine: Any) -> None:
    from rich import box
    from rich.table import Table

    prompt = made["prompt"]
    title = (
        f"{prompt['visual']} visual and {prompt['text']} text tokens, {prompt['new']} generated, one request; "
        f"{prompt['dtype']} on {machine.name}"
    )
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", padding=(0, 0, 0, 1))
    headings = (
        "method", "keep", "tokens", "layer", "FLOPs", "KV cache", "guide ms", "vision ms", "prefill ms", "token ms",
        "total ms", "faster", "requests",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in made["rows"]:
        times = [_milliseconds(row[name]) for name in ("guide", "vision", "prefill", "decode_token", "total")]
        table.add_row(
            row["method"], row["keep"], str(row["kept"]), "-" if row["method"] == "none" else str(row["layer"]),
            amount(row["prefill_flops"]), amount(row["kv_bytes"], "B"), *times,
            f"{row['speed_up']:.2f}x", str(row["requests"]),
        )  # fmt: skip
    out = console()
    out.print(table)
    peaks = f"{amount(machine.flops, 'FLOP/s')}, {amount(machine.bandwidth, 'B/s')}, {amount(machine.memory, 'B')}"
    out.print(f"By roofline ({peaks}): the time of perfect kernels. requests: how many fit at once.")
    for said in made["sgl"]:
        out.print(f"SGL at keep={said['keep']}: {verdict_in_words(said)}")


def _milliseconds(seconds: float) -> str:
    """Plans reach from microseconds to seconds."""
    return f"{seconds * 1000:.3g}" if seconds else "-"


def verdict_in_words(said: dict[str, Any]) -> str:
    """Whether a guide pays."""
    guide, allowed = (f"{_milliseconds(said[name])} ms" for name in ("guide", "allowed"))
    if said["pays"]:
        return f"pays; the guide takes {guide}, pruning saves {allowed}."
    if said["exits"] is None:
        return f"does not pay; the guide takes {guide}, as long as the large model alone."
    return (
        f"pays only if the guide answers {share(said['exits'], 1)} of the requests alone; it takes {guide}, pruning "
        f"saves {allowed}."
    )
