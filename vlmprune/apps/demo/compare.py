"""The tab Compare: every method at one budget, with its answer, what it kept, and bars of time and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

import vlmprune

from ...errors import VlmpruneError
from ...harness.format import milliseconds, share
from ...harness.measure import Contender
from ...harness.models import make, options_of
from ..cli.compare import WITH_EXIT, small_alone
from ..cli.options import EXIT_AT
from .draw import overlay
from .engine import MAX_NEW_TOKENS, Engine, Send, Setting
from .examples import inputs
from .page import bars, figure, grid, notice, plain_errors, text, told
from .upload import checked

if TYPE_CHECKING:
    from PIL import Image

    from ...accounting.report import Report

TITLE = "Compare"
SMALL_SIDE = 220  # pixels of an overlay in the grid


@dataclass(frozen=True)
class Row:
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
    names = [
        name
        for name in vlmprune.list_methods()
        if name != "none" and ("guide" not in options_of(name) or engine.models.small is not None)
    ]
    return names + [name + WITH_EXIT for name in names if "exit_at" in options_of(name)]


def contenders(engine: Engine, keep: float) -> Iterator[Contender | Row]:
    """The unpruned model, the small one alone, and every method; a `Row` where a method does not fit the models."""
    models = engine.models
    yield Contender("unpruned", "", models.model, models.processor, make("none"))
    yield from small_alone(models)
    for name in methods(engine):
        exit_at = EXIT_AT if name.endswith(WITH_EXIT) else None
        try:
            made = Setting(name.removesuffix(WITH_EXIT), keep, exit_at).made(models)
            yield Contender(name, str(keep), models.model, models.processor, made)
        except VlmpruneError as error:
            yield Row(name, error=str(error))


def compare(engine: Engine, picture: Image.Image, question: str, keep: float) -> Iterator[Progress | list[Row]]:
    """Progress, and at last all rows.

    Raises:
        VlmpruneError: a bad question or budget.
    """
    question = engine.asked(question)
    racers = list(contenders(engine, float(keep)))

    def work(send: Send) -> None:
        rows: list[Row] = []
        for racer in racers:
            rows.append(racer if isinstance(racer, Row) else raced(racer, picture, question))
            send(Progress(len(rows), len(racers)))
        send(rows)

    return engine.stream(work)


def raced(racer: Contender, picture: Image.Image, question: str) -> Row:
    """One run to warm up and one that counts."""
    try:
        for record in (False, True):
            racer.run([picture], [question], record=record, max_new_tokens=MAX_NEW_TOKENS, num_beams=1)
    except VlmpruneError as error:
        return Row(racer.method_name, error=str(error))
    return Row(racer.method_name, racer.answers[0][0], racer.reports[0])


def build(engine: Engine) -> None:
    """Put the tab on the page."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            given = inputs("compare")
            keep = gr.Slider(0.02, 1.0, 0.25, step=0.01, label="Keep (share of tokens)", elem_id="compare-keep")
            go = gr.Button("Compare all methods", variant="primary", elem_id="compare-go")
        with gr.Column(scale=2, min_width=300):
            table = gr.HTML(elem_id="compare-table")
    pictures = gr.HTML(elem_id="compare-pictures", elem_classes="vp-small-grid")

    @told(("", ""))
    def run(picture: Any, question: str, keep: float) -> Iterator[tuple[Any, ...]]:
        shown = checked(picture)
        yield notice("Asking one method after another", alert=False), ""
        for news in compare(engine, shown, question, keep):
            if isinstance(news, Progress):
                yield notice(f"{news.done} of {news.total} methods have answered", alert=False), ""
            else:
                yield tabulated(news), grid(overlays(news, shown))

    gr.on(
        [go.click, given.question.submit],  # type: ignore[union-attr]  # this tab has a question
        run,
        [given.picture, given.question, keep],
        [given.alert, table, pictures],
        api_visibility="private",
        concurrency_id="models",
        concurrency_limit=1,
        show_progress="hidden",
    )

    def compare_api(picture: Any, question: str, keep: float) -> list[dict[str, Any]]:
        (*_, rows) = compare(engine, checked(picture), question, keep)
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

    gr.Button(visible=False).click(
        plain_errors(compare_api),
        [given.picture, given.question, keep],
        gr.JSON(visible=False),
        api_name="compare",
        api_description="Answer a question with every method at one budget: answers and reports.",
        concurrency_id="models",
        concurrency_limit=1,
    )


def tabulated(rows: list[Row]) -> str:
    """Answers as a table, then bars of time and tokens."""
    full = rows[0].report.prefill_flops if rows[0].report is not None else 0
    body = "".join(
        f'<tr><th scope="row">{text(row.name)}</th><td>{text(row.text or row.error or "(nothing)")}</td>'
        f'<td class="vp-num">{text(flops(row, full))}</td></tr>'
        for row in rows
    )
    head = '<th scope="col">method</th><th scope="col">answer</th><th scope="col" class="vp-num">prompt FLOPs</th>'
    table = f'<table class="vp-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    answers = f'<div class="vp-scroll">{table}</div>'
    ran = [(row.name, row.report) for row in rows if row.report is not None]
    times = [(name, report.seconds["total"], milliseconds(report.seconds["total"])) for name, report in ran]
    tokens = [(name, report.layer_avg_tokens, f"{report.layer_avg_tokens:.1f}") for name, report in ran]
    return (
        answers
        + bars("Time of one run after one to warm up, small model included", times)
        + bars("Visual tokens, averaged over the layers", tokens)
    )


def flops(row: Row, full: int) -> str:
    """Of the prompt, the small model's included, in percent of the unpruned large model's."""
    return "-" if row.report is None else share(row.report.prefill_flops + (row.report.guide_flops or 0), full)


def overlays(rows: list[Row], picture: Image.Image) -> list[str]:
    """What each method kept, in a grid."""
    cells = []
    for row in rows:
        if row.report is None or not row.report.images[0]:
            continue
        kept, visual = row.report.kept_tokens[0], row.report.visual_tokens[0]
        drawn = overlay(picture, kept=row.report.images[0][0], side=SMALL_SIDE)
        counted = f"{row.name}: {kept} of {visual}"
        cells.append(figure(drawn, f"What {row.name} kept of the picture: {kept} of {visual} visual tokens.", counted))
    return cells
