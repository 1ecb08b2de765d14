"""The tab Plan: what pruning would save on given hardware, and how many requests fit, by roofline."""

import copy
from typing import Any

import gradio as gr

from ...accounting.hardware import HARDWARE
from ...errors import VlmpruneError
from ...harness.format import amount, percent
from ...harness.plan_rows import Named, in_ms, llava_7b, named, planned, usual_methods, verdict_in_words
from .engine import Engine
from .page import html, offer, on_open, on_start

TITLE = "Plan"
DTYPE = "bf16"  # the precision of the hardware's peaks
SEVEN = llava_7b()[0]
# What the tab begins with: an image in tiles, as of LLaVA-NeXT, on a machine that many have.
KEEP, VISUAL, WORDS, NEW = 0.25, 2880, 64, 32
MACHINE = "a100"
OWN = "the model of this page"
MOST = 1_000_000  # tokens


def pairs(engine: Engine) -> dict[str, tuple[Named, Named | None]]:
    """Name -> large and small config: the page's own models and two common sizes of LLaVA."""
    models = engine.models
    small = None if models.small is None else (models.small_name or "small", copy.deepcopy(models.small.config))
    seven = llava_7b()
    thirteen = named("llava-1.5-13b", "LLaVA-1.5 13B")
    return {
        OWN: ((models.name, copy.deepcopy(models.model.config)), small),
        seven[0]: (seven, None),
        f"{thirteen[0]}, guided by {seven[0]}": (thirteen, seven),
    }


def plan(engine: Engine, model: str, hardware: str, keep: float, visual: float, words: float, new: float) -> Any:
    """The plan of `vlmprune plan --json`, for one budget. (Gradio refuses an unknown model or hardware.)"""
    for what, value, least in (("Visual tokens", visual, 0), ("Text tokens", words, 1), ("New tokens", new, 1)):
        if not isinstance(value, int | float) or not least <= value <= MOST:
            raise VlmpruneError(f"{what}: {value!r} is out of range; give a number from {least} to {MOST:,}.")
    large, small = pairs(engine)[model]
    settings = [(name, float(keep)) for name in usual_methods(small)]
    with engine.alone.wait():  # building a model in bf16 changes torch's default precision for all threads
        return planned(
            large, small, HARDWARE[hardware], settings, None,
            visual=int(visual) or None, text=int(words), new=int(new), dtype=DTYPE,
        )  # fmt: skip


def opening(engine: Engine) -> Any:
    """The plan of a 7B model with the inputs that the tab begins with, made once."""
    return engine.opened(TITLE, lambda: plan(engine, SEVEN, MACHINE, KEEP, VISUAL, WORDS, NEW))


def build(engine: Engine, tab: gr.Tab) -> None:
    """Add the tab to the page."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            alert = gr.HTML(elem_id="plan-alert")
            model = gr.Dropdown(list(pairs(engine)), value=SEVEN, label="Model", elem_id="plan-model", filterable=False)
            machines = list(HARDWARE)
            hardware = gr.Dropdown(machines, value=MACHINE, label="Hardware", elem_id="plan-hardware", filterable=False)
            keep = gr.Slider(0.02, 1.0, KEEP, step=0.01, label="Keep (fraction of tokens)", elem_id="plan-keep")
            visual = gr.Number(VISUAL, label="Visual tokens of an image (0: the model's own)", elem_id="plan-visual")
            words = gr.Number(WORDS, label="Text tokens of the prompt", elem_id="plan-text")
            new = gr.Number(NEW, label="Tokens generated", elem_id="plan-new")
            go = gr.Button("Plan", variant="primary", elem_id="plan-go")
        with gr.Column(scale=3, min_width=300):
            made = gr.HTML(elem_id="plan-made")
    boxes = [model, hardware, keep, visual, words, new]

    opened = on_open(tab, lambda: opening(engine), shown, [alert, made])
    on_start(go, lambda *given: [plan(engine, *given)], shown, boxes, [alert, made], cancels=[opened])
    about = "What pruning would save on given hardware, as `vlmprune plan --json` prints it."
    offer("plan", lambda *given: [plan(engine, *given)], dict, boxes, about)


def shown(made: dict[str, Any]) -> tuple[str]:
    """Speed-ups and requests as bars, times as a table, and whether a small model pays."""
    rows, prompt, machine = made["rows"], made["prompt"], made["hardware"]
    headings = ("method", "tokens", "prefill FLOPs", "KV cache", "a request")
    cells = [
        (
            row["method"],
            str(row["kept"]),
            percent(row["prefill_flops"], rows[0]["prefill_flops"]),
            amount(row["kv_bytes"], "B"),
            f"{in_ms(row['total'])} ms",
        )
        for row in rows
    ]
    about = (
        f"{made['config']}: {prompt['visual']} visual and {prompt['text']} text tokens, {prompt['new']} generated, "
        f"{prompt['dtype']} on {machine['name']}. By roofline, the time of perfect kernels: ratios hold better than "
        "milliseconds"
    )
    faster = [(row["method"], row["speed_up"], f"{row['speed_up']:.2f}x") for row in rows]
    fit = [(row["method"], float(row["requests"]), f"{row['requests']:,}") for row in rows]
    verdicts = [f"SGL at keep={one['keep']} {verdict_in_words(one)}" for one in made["sgl"]]
    notes = [*made["does_not_fit"], about, *verdicts]
    return (
        html.result(in_a_sentence(made))
        + html.bars("Predicted speed-up of a request", faster)
        + html.bars("Requests that fit at once", fit)
        + html.table(headings, cells)
        + html.notices(notes),
    )


def in_a_sentence(made: dict[str, Any]) -> str:
    """What the fastest method of a plan saves."""
    full, *others = (row for row in made["rows"] if row["method"] != "random")  # random is the floor, no advice
    best = max(others, key=lambda row: row["speed_up"])
    fit = f"{best['requests']:,} requests fit at once instead of {full['requests']:,}"
    who = f"{made['config']} on {made['hardware']['name']}, {made['prompt']['visual']:,} visual tokens"
    if best["speed_up"] < 1.005:
        return f"Predicted for {who}: no method saves time; {fit}."
    return f"Predicted for {who}: {best['method']} makes a request {best['speed_up']:.2f}x faster, and {fit}."
