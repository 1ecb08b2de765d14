"""The tab Compare: every method at one budget, with its answer, what it kept, and bars of time and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import VlmpruneError
from ...harness.baselines import EXIT_AT, WITH_EXIT, small_alone
from ...harness.format import milliseconds, percent
from ...harness.measure import MethodRun
from ...harness.models import make, options_of
from .draw import overlay
from .engine import MAX_NEW_TOKENS, Engine, MethodChoice, Send
from .examples import inputs
from .page import bars, figure, grid, notice, offer, on_start, table, with_notice
from .upload import checked

if TYPE_CHECKING:
    from PIL import Image

    from ...accounting.report import Report

TITLE = "Compare"
SMALL_SIDE = 220  # pixels of an overlay in the grid


@dataclass(frozen=True)
class MethodAnswer:
    """One method's answer and report, or why it has none."""

    name: str
    text: str = ""
    report: Report | None = None
    error: str = ""


@dataclass(frozen=True)
class Progress:
    """How many of the rows are there."""

    done: int
    total: int


def methods(engine: Engine) -> list[str]:
    """Every registered method that these models can run, and SGL with its exit."""
    names = [name for name in engine.runnable() if name != "none"]
    return names + [name + WITH_EXIT for name in names if "exit_at" in options_of(name)]


def method_runs(engine: Engine, keep: float) -> Iterator[MethodRun | MethodAnswer]:
    """The unpruned model, the small one alone, and every method; a `MethodAnswer` where a method cannot run."""
    models = engine.models
    yield MethodRun(models.model, models.processor, make("none"), "unpruned")
    yield from small_alone(models)
    for name in methods(engine):
        exit_at = EXIT_AT if name.endswith(WITH_EXIT) else None
        try:
            made = MethodChoice(name.removesuffix(WITH_EXIT), keep, exit_at).made(models)
            yield MethodRun(models.model, models.processor, made, name, str(keep))
        except VlmpruneError as error:
            yield MethodAnswer(name, error=str(error))


def compare(
    engine: Engine, image: Image.Image, question: str, keep: float
) -> Iterator[Progress | list[MethodAnswer]]:
    """Progress, and at last all rows.

    Raises:
        VlmpruneError: a bad question or budget.
    """
    question = engine.asked(question)
    runs = list(method_runs(engine, float(keep)))

    def work(send: Send) -> None:
        rows: list[MethodAnswer] = []
        for run in runs:
            rows.append(run if isinstance(run, MethodAnswer) else answered(run, image, question))
            send(Progress(len(rows), len(runs)))
        send(rows)

    return engine.stream(work)


def answered(run: MethodRun, image: Image.Image, question: str) -> MethodAnswer:
    """One run to warm up and one that counts."""
    try:
        for _ in range(2):
            (answer,), report = run.answer([image], [question], max_new_tokens=MAX_NEW_TOKENS, num_beams=1)
    except VlmpruneError as error:
        return MethodAnswer(run.name, error=str(error))
    return MethodAnswer(run.name, answer, report)


def build(engine: Engine) -> None:
    """Put the tab on the page."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            given = inputs("compare")
            keep = gr.Slider(0.02, 1.0, 0.25, step=0.01, label="Keep (fraction of tokens)", elem_id="compare-keep")
            go = gr.Button("Compare all methods", variant="primary", elem_id="compare-go")
        with gr.Column(scale=2, min_width=300):
            table_of_answers = gr.HTML(elem_id="compare-table")
    images = gr.HTML(elem_id="compare-images", elem_classes="vp-small-grid")

    @with_notice(("", ""))
    def run(image: Any, question: str, keep: float) -> Iterator[tuple[Any, ...]]:
        shown = checked(image)
        yield notice("Asking one method after another", alert=False), ""
        for news in compare(engine, shown, question, keep):
            if isinstance(news, Progress):
                yield notice(f"{news.done} of {news.total} methods have answered", alert=False), ""
            else:
                yield tabulated(news), grid(overlays(news, shown))

    on_start(given.triggers(go), run, [given.image, given.question, keep], [given.alert, table_of_answers, images])

    def compare_api(image: Any, question: str, keep: float) -> list[dict[str, Any]]:
        (*_, rows) = compare(engine, checked(image), question, keep)
        assert isinstance(rows, list)
        return [
            {
                "method": row.name,
                "text": row.text,
                "report": row.report.to_dict() if row.report else None,
                "error": row.error or None,
            }
            for row in rows
        ]

    about = "Answer a question with every method at one budget: answers and reports."
    offer(compare_api, [given.image, given.question, keep], "compare", about)


def tabulated(rows: list[MethodAnswer]) -> str:
    """Answers as a table, then bars of time and tokens."""
    full = rows[0].report.prefill_flops if rows[0].report is not None else 0
    cells = [(row.name, row.text or row.error or "(nothing)", flops(row, full)) for row in rows]
    ran = [(row.name, row.report) for row in rows if row.report is not None]
    times = [(name, report.seconds["total"], milliseconds(report.seconds["total"])) for name, report in ran]
    tokens = [(name, report.layer_avg_tokens, f"{report.layer_avg_tokens:.1f}") for name, report in ran]
    return (
        table(("method", "answer", "prompt FLOPs"), cells, words=2)
        + bars("Time of one run after one to warm up, small model included", times)
        + bars("Visual tokens, averaged over the layers", tokens)
    )


def flops(row: MethodAnswer, full: int) -> str:
    """Of the prompt, the small model's included, in percent of the unpruned large model's."""
    return "-" if row.report is None else percent(row.report.prefill_flops + (row.report.guide_flops or 0), full)


def overlays(rows: list[MethodAnswer], image: Image.Image) -> list[str]:
    """What each method kept, in a grid."""
    cells = []
    for row in rows:
        if row.report is None or not row.report.images[0]:
            continue
        kept, visual = row.report.kept_tokens[0], row.report.visual_tokens[0]
        drawn = overlay(image, kept=row.report.images[0][0], side=SMALL_SIDE)
        counted = f"{row.name}: {kept} of {visual}"
        cells.append(figure(drawn, f"What {row.name} kept of the image: {kept} of {visual} visual tokens.", counted))
    return cells
