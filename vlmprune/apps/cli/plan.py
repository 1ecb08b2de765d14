"""``vlmprune plan``: what pruning would cost and save on a GPU, from a model's config alone."""

import itertools
from typing import Annotated, Any, Literal

import typer

from ...accounting.hardware import hardware as known_hardware
from ...errors import VlmpruneError
from ...harness.format import amount, console, print_json, table
from ...harness.models import PACKAGE, quiet
from . import options

BUDGETS = (0.5, 0.25, 0.1, 0.05)
BUNDLED = PACKAGE / "tiny" / "weights"
MOST_TOKENS = 100_000_000
TIMES = ("guide", "vision", "prefill", "decode_token", "total")
MODEL = "A published model's name (--list), a Hub id, a model's folder or config.json; none: the bundled pair's."


def plan(
    config: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL)] = None,
    guide: Annotated[str | None, options.text("MODEL", "The small model's, for the row of sgl.")] = None,
    hardware: Annotated[str, options.text("NAME", "h100, h200, a100, l40s, 4090, l4, or custom.")] = "h100",
    gpus: Annotated[int, options.count("Cards that share one model (tensor parallel), communication not counted.")] = 1,
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
    visual: Annotated[
        int | None, options.count("Visual tokens of the image.", shown="the config's", most=MOST_TOKENS)
    ] = None,
    frames: Annotated[
        int | None, options.count("Frames of a video in place of an image.", shown="none", most=MOST_TOKENS)
    ] = None,
    text: Annotated[int, options.count("Text tokens of the prompt.", most=MOST_TOKENS)] = 64,
    new: Annotated[int | None, options.count("Tokens generated.", shown="32", most=MOST_TOKENS)] = None,
    answer_tokens: Annotated[
        int | None,
        options.count(
            "As --new, and what such an answer costs with the cache cut, buffered or read in part.",
            shown="none",
            most=MOST_TOKENS,
        ),
    ] = None,
    batch: Annotated[int, options.count("Requests side by side.", most=MOST_TOKENS)] = 1,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    list_models: Annotated[bool, typer.Option("--list", help="List the published models, and plan nothing.")] = False,
    json: options.Json = False,
) -> None:
    """Estimate FLOPs, cache, time and requests that fit, by roofline, without weights or a GPU."""
    if list_models:
        show_models(json)
        return
    if frames is not None and visual is not None:
        raise VlmpruneError("--frames and --visual both say how many visual tokens there are; give one of them")
    if new is not None and answer_tokens is not None:
        raise VlmpruneError("--new and --answer-tokens both say how many tokens are generated; give one of them")
    machine = known_hardware(hardware, gpus=gpus, flops=flops, bandwidth=bandwidth, memory=memory)
    from ...accounting.configs import load_config
    from ...harness.plan_answer import planned_answer
    from ...harness.plan_rows import planned, usual_methods

    if config is None:
        config, guide = str(BUNDLED / "large"), guide or str(BUNDLED / "small")
    settings = list(itertools.product(method or usual_methods(guide), keep or BUDGETS))
    with quiet():
        name, values, assumed = load_config(config)
        small = None
        if guide is not None:
            title, its, more = load_config(guide)
            small = title, its
            assumed = " ".join(filter(None, (assumed, more)))
        prompt: dict[str, Any] = {
            "visual": visual, "text": text, "new": answer_tokens or new or 32, "dtype": dtype, "batch": batch,
            "frames": frames,
        }  # fmt: skip
        made = planned((name, values), small, machine, settings, layer, **prompt)
        if answer_tokens is not None:
            made["answer"] = planned_answer((name, values), machine, keep or BUDGETS, **prompt)
    made["assumed"] = assumed
    if json:
        print_json(made)
        return
    show(made, machine)


def show(made: dict[str, Any], machine: Any) -> None:
    """Print a plan for people: the table, what its numbers are, and what does not fit."""
    from ...harness.plan_answer import answer_table, answer_words
    from ...harness.plan_rows import in_ms, verdict_in_words

    prompt, batch = made["prompt"], made["prompt"]["batch"]
    video = "" if prompt["frames"] is None else f"{prompt['frames']:,} frames, "
    title = (
        f"{video}{prompt['visual']:,} visual and {prompt['text']:,} text tokens, {prompt['new']:,} generated, "
        f"{'one request' if batch == 1 else f'{batch:,} requests at a time'}; {prompt['dtype']} on {machine.title}"
    )
    times = [name for name in TIMES if name != "guide" or any(row["guide"] for row in made["rows"])]
    written = (f"{name.removeprefix('decode_')} ms" for name in times)
    rows = table(("method", "keep", "tokens", "layer", "FLOPs", "KV cache", *written, "faster", "fit"), title=title)
    for row in made["rows"]:
        where = "-" if row["method"] == "none" else str(row["layer"])
        cost = amount(row["prefill_flops"]), amount(row["kv_bytes"], "B"), *(in_ms(row[name]) for name in times)
        rows.add_row(
            row["method"], row["keep"], str(row["kept"]), where, *cost, f"{row['speed_up']:.2f}x", str(row["requests"])
        )
    out = console()
    out.print(rows)
    numbers = made["number_bytes"]
    active = f", of which a token goes through {billions(made['active_weights'] / numbers)}" if made["experts"] else ""
    weights = f"{billions(made['weights'] / numbers)} weights{active}, {amount(made['weights'], 'B')}"
    out.print(f"{made['config']}: {weights} in {prompt['dtype']}.")
    peaks = f"{amount(machine.flops, 'FLOP/s')}, {amount(machine.bandwidth, 'B/s')}, {amount(machine.memory, 'B')}"
    out.print(f"By roofline ({peaks}): the time of perfect kernels. fit: requests that fit at once.")
    for line in filter(None, (made["assumed"], *made["does_not_fit"])):
        out.print(line)
    for found in made["sgl"]:
        out.print(f"SGL at keep={found['keep']}: {verdict_in_words(found)}")
    if "answer" in made:
        out.print(answer_table(made["answer"]))
        for line in answer_words(made["answer"]):
            out.print(line)


def show_models(json: bool) -> None:
    """Print the table of published models."""
    from ...accounting.published import CONFIG, COUNTS, MODELS

    names = ("weights", "active", "visual")
    records: list[dict[str, Any]] = [
        {"name": one.name, "hub": one.hub, **dict(zip(names, COUNTS[one.name], strict=True)), "source": one.source}
        for one in MODELS
    ]
    if json:
        print_json(records)
        return
    rows = table(("name", "weights", "active", "visual tokens", "on the Hugging Face Hub"), left=(0, 4))
    for name, hub, weights, active, visual, _ in (one.values() for one in records):
        rows.add_row(name, f"{weights}B", "" if active is None else f"{active}B", str(visual), hub)
    out = console()
    out.print(rows)
    out.print("active: what a token goes through where experts are chosen. visual tokens: of an image of 896 x 896")
    out.print("pixels, of a tile where images are cut into tiles. Sizes are those of each config.json, except for:")
    for source, group in itertools.groupby(MODELS, lambda one: one.source):
        if source != CONFIG:
            out.print(f"  {', '.join(one.name for one in group)}: {source}")


def billions(count: float) -> str:
    """A number of weights, as models' names have it."""
    return f"{count / 1e9:.3g}B"
