"""The tab Compare: every method at one budget, with its answer, what it kept, and bars of time and tokens."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from ...errors import VlmpruneError
from ...harness.baselines import WITH_EXIT, compared
from ...harness.format import milliseconds, percent
from ...harness.measure import MethodRun, interleaved
from ...harness.models import options_of
from .draw import overlay
from .engine import GREEDY, Engine, last
from .examples import examples, inputs
from .page import html, offer, on_open, on_start

TITLE = "Compare"
KEEP = 0.25
SMALL_SIDE = 220  # pixels of an overlay in the grid


def methods(engine: Engine) -> list[str]:
    """Names of the registered methods that run with these models, and SGL with its exit."""
    names = [name for name in engine.runnable() if name != "none"]
    return names + [name + WITH_EXIT for name in names if "exit_at" in options_of(name)]


def compare(engine: Engine, image: Image.Image, question: str, keep: float) -> Iterator[Any]:
    """Progress, then the image with the runs of the unpruned model, the small one alone and every method."""
    question = engine.asked(question)
    runs = compared(engine.models, methods(engine), [float(keep)])
    runs[0].name = "unpruned"
    for done, run in enumerate(runs):
        yield f"{done} of {len(runs)} methods have answered"
        try:
            with engine.alone.wait():
                interleaved([run], [([image], [question])], **GREEDY)
        except VlmpruneError as error:
            run.error = str(error)
    yield image, runs


def opening(engine: Engine) -> Any:
    """Every method on the first example, made once."""
    image, question = next(iter(examples().values()))
    return engine.opened(TITLE, lambda: last(compare(engine, image, question, KEEP)))


def build(engine: Engine, tab: gr.Tab) -> None:
    """Add the tab to the page."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            alert, given = inputs("compare")
            keep = gr.Slider(0.02, 1.0, KEEP, step=0.01, label="Keep (fraction of tokens)", elem_id="compare-keep")
            go = gr.Button("Compare all methods", variant="primary", elem_id="compare-go")
        with gr.Column(scale=2, min_width=300):
            table = gr.HTML(elem_id="compare-table")
    images = gr.HTML(elem_id="compare-images", elem_classes="vp-small-grid")

    boxes, work = [*given, keep], partial(compare, engine)
    outputs = [alert, table, images]
    opened = on_open(tab, partial(opening, engine), shown, outputs)
    on_start(go, work, shown, boxes, outputs, cancels=[opened])
    about = "Answer a question with every method at one budget: answers and reports."
    offer("compare", work, lambda found: [record(run) for run in found[1]], boxes, about)


def record(run: MethodRun) -> dict[str, Any]:
    """A method's answer and report, or its error; JSON-serialisable."""
    text, report = (run.answers[0][0], run.reports[0].to_dict()) if run.reports else ("", None)
    return {"method": run.name, "text": text, "report": report, "error": run.error or None}


def shown(found: tuple[Image.Image, list[MethodRun]]) -> tuple[str, str]:
    """The answers with bars of time and tokens, and overlays of what each method kept."""
    image, runs = found
    full = runs[0].total("prefill_flops")
    answers, times, tokens, cells = [], [], [], []
    for run in runs:
        if not run.reports:
            answers.append((run.name, run.error, "-"))
            continue
        report = run.reports[0]
        flops = percent(run.total("prefill_flops") + run.total("guide_flops"), full)
        answers.append((run.name, run.answers[0][0] or "(nothing)", flops))
        times.append((run.name, run.seconds(), milliseconds(run.seconds())))
        tokens.append((run.name, report.layer_avg_tokens, f"{report.layer_avg_tokens:.1f}"))
        for span in report.images[0][:1]:
            kept = f"{report.kept_tokens[0]} of {report.visual_tokens[0]}"
            drawn = overlay(image, kept=span, side=SMALL_SIDE)
            alt = f"What {run.name} kept of the image: {kept} visual tokens."
            cells.append(html.figure(drawn, alt, f"{run.name}: {kept}"))
    table = (
        html.result(in_a_sentence(runs))
        + html.table(("method", "answer", "prompt FLOPs"), answers, words=2)
        + html.bars("Time of one run after one to warm up, small model included", times)
        + html.bars("Visual tokens, averaged over the layers", tokens)
    )
    return table, html.grid(cells)


def in_a_sentence(runs: list[MethodRun]) -> str:
    """How many methods answer as the unpruned model does, and which of those costs least."""
    full, *others = runs
    pruned = [run for run in others if run.reports and run.method.title != "none"]
    same = [run for run in pruned if run.answers[0] == full.answers[0]]
    said = f"{len(same)} of {len(pruned)} methods give the unpruned answer, {full.answers[0][0]!r}"
    if not same:
        return f"{said}."
    spent = {run.name: run.total("prefill_flops") + run.total("guide_flops") for run in same}
    least = min(spent, key=lambda name: spent[name])
    return f"{said}; {least} takes the fewest FLOPs for it, {percent(spent[least], full.total('prefill_flops'))}."
