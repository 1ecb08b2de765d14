"""``vlmprune plan``: what pruning would cost and save on a GPU, from a model's config alone."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

import typer

from ...accounting.hardware import hardware as known_hardware
from ...harness.format import amount, console, print_json, table
from ...harness.models import PACKAGE, quiet
from . import options

BUDGETS = (0.5, 0.25, 0.1, 0.05)
BUNDLED = PACKAGE / "tiny" / "weights"


def plan(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A model's folder or config.json; none: the bundled pair's.")
    ] = None,
    guide: Annotated[Path | None, options.text("CONFIG", "The small model's, for the row of sgl.")] = None,
    hardware: Annotated[str, options.text("NAME", "h100, a100, 4090, l4, or custom with the three peaks.")] = "h100",
    flops: Annotated[float | None, typer.Option(help="With custom: FLOPs a second, as 989e12.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="With custom: bytes a second, as 3.35e12.")] = None,
    memory: Annotated[float | None, typer.Option(help="With custom: bytes, as 80e9.")] = None,
    method: Annotated[
        list[str] | None,
        options.text("NAME", "May be given several times.", shown="random, fastv, sgl"),
    ] = None,
    keep: Annotated[
        list[float] | None,
        options.amount("K", "May be given several times.", shown=" ".join(map(str, BUDGETS))),
    ] = None,
    layer: options.Layer = None,
    visual: Annotated[int | None, options.count("Visual tokens of the image.", shown="the config's")] = None,
    text: Annotated[int, options.count("Text tokens of the prompt.")] = 64,
    new: Annotated[int, options.count("Tokens generated.")] = 32,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    json: options.Json = False,
) -> None:
    """Estimate FLOPs, cache, time and requests that fit, by roofline, without weights or a GPU."""
    machine = known_hardware(hardware, flops=flops, bandwidth=bandwidth, memory=memory)
    from ...accounting.model_sizes import read_config
    from ...harness.plan_rows import in_ms, planned, usual_methods, verdict_in_words

    if config is None:
        config, guide = BUNDLED / "large", guide or BUNDLED / "small"
    settings = list(itertools.product(method or usual_methods(guide), keep or BUDGETS))
    with quiet():
        large = str(config), read_config(config)
        small = None if guide is None else (str(guide), read_config(guide))
        made = planned(large, small, machine, settings, layer, visual=visual, text=text, new=new, dtype=dtype)
    if json:
        print_json(made)
        return
    prompt = made["prompt"]
    title = (
        f"{prompt['visual']} visual and {prompt['text']} text tokens, {prompt['new']} generated, one request; "
        f"{prompt['dtype']} on {machine.name}"
    )
    times = ("guide", "vision", "prefill", "decode_token", "total")
    written = (f"{name.removeprefix('decode_')} ms" for name in times)
    headings = ("method", "keep", "tokens", "layer", "FLOPs", "KV cache", *written, "faster", "requests")
    rows = table(headings, title=title, padding=(0, 0, 0, 1))
    for row in made["rows"]:
        where = "-" if row["method"] == "none" else str(row["layer"])
        cost = amount(row["prefill_flops"]), amount(row["kv_bytes"], "B"), *(in_ms(row[name]) for name in times)
        gain = f"{row['speed_up']:.2f}x", str(row["requests"])
        rows.add_row(row["method"], row["keep"], str(row["kept"]), where, *cost, *gain)
    out = console()
    out.print(rows)
    peaks = f"{amount(machine.flops, 'FLOP/s')}, {amount(machine.bandwidth, 'B/s')}, {amount(machine.memory, 'B')}"
    out.print(f"By roofline ({peaks}): the time of perfect kernels. requests: how many fit at once.")
    for found in made["sgl"]:
        out.print(f"SGL at keep={found['keep']}: {verdict_in_words(found)}")
