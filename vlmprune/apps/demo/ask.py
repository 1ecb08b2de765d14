"""The tab Ask: both answers while they are generated, their costs, attention maps and dropped tokens."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ...api import Answer
from ...harness.baselines import EXIT_AT
from ...harness.format import amount, milliseconds, saved
from ...harness.models import options_of
from .draw import overlay
from .engine import AskResult, Engine
from .examples import inputs
from .page import html, offer, on_input, on_start, redraw

TITLE = "Ask"
LARGE, SMALL, NONE = "large model, this layer", "small model, all layers", "none"
ABOUT = (
    "Answer a question about an image, unpruned and pruned: the answers with their reports, as `vlmprune ask --json` "
    "prints them. The last argument is SGL's exit_at, null for never."
)


def pruners(engine: Engine) -> list[str]:
    """Names of the methods that take a budget and run with these models."""
    return [name for name in engine.runnable() if "keep" in options_of(name)]


def build(engine: Engine) -> None:
    """Add the tab to the page."""
    names = pruners(engine)
    first = "sgl" if "sgl" in names else "fastv"
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            alert, given = inputs("ask")
            with gr.Row():
                method = gr.Dropdown(names, value=first, label="Method", elem_id="ask-method", filterable=False)
                keep = gr.Slider(0.02, 1.0, 0.25, step=0.01, label="Keep (fraction)", elem_id="ask-keep")
            with gr.Group(visible="exit_at" in options_of(first)) as leaving:
                early = gr.Checkbox(False, label="Early exit: the small model may answer alone", elem_id="ask-early")
                sure = gr.Slider(0.0, 1.0, EXIT_AT, step=0.01, label="... when this sure", elem_id="ask-sure")
            go = gr.Button("Ask", variant="primary", elem_id="ask-go")
        with gr.Column(scale=3, min_width=300):
            answers = gr.HTML(elem_id="ask-answers")
            cost = gr.HTML(elem_id="ask-cost")
            heats = [LARGE, SMALL, NONE] if engine.models.small is not None else [LARGE, NONE]
            heat = gr.Radio(heats, value=LARGE, label="Heat map: what is looked at", elem_id="ask-heat")
            layer = gr.Slider(0, engine.deepest, engine.deepest, step=1, label="Decoder layer", elem_id="ask-layer")
            images = gr.HTML(elem_id="ask-images")
    state = gr.State(None)
    on_input(method, lambda name: gr.Group(visible="exit_at" in options_of(name)), method, leaving, queue=False)

    on_start(
        go,
        lambda image, text, method, keep, early, sure: engine.ask(image, text, method, keep, sure if early else None),
        shown,
        [*given, method, keep, early, sure],
        [alert, answers, cost, images, state],
        views=[layer, heat],
        show_progress="minimal",
        show_progress_on=answers,
    )
    redraw(looked, state, [layer, heat], images)
    offer("ask", engine.ask, AskResult.to_dict, [*given, method, keep, gr.Number(None, visible=False)], ABOUT)


def shown(news: dict[str, str] | AskResult, layer: int, heat: str) -> tuple[Any, ...]:
    """Outputs for the answers so far, or for the final result."""
    if isinstance(news, AskResult):
        return finished(news), costs(news), looked(news, layer, heat), news
    return html.grid([html.card(side.title(), text, busy=True) for side, text in news.items()]), "", "", None


def finished(run: AskResult) -> str:
    """Cards with both answers and the small model's, and their costs."""
    made = run.pruned.report.method
    cells = [
        html.card("Unpruned", run.unpruned.text, facts(run.unpruned)),
        html.card(f"Pruned: {made['name']}, keep {made.get('keep', '-')}", run.pruned.text, facts(run.pruned)),
    ]
    if (small := run.small) is not None:
        gone = run.pruned.report.exited
        said = [
            ("confidence", f"{small.confidence:.2f}"),
            ("consistency", f"{small.consistency:.2f}"),
            ("how sure (their mean)", f"{small.sure:.2f}"),
            ("exited", "only sgl asks it" if gone is None else "yes, its answer was taken" if gone[0] else "no"),
            ("time", milliseconds(small.seconds)),
        ]
        cells.append(html.card("Small model alone", small.text, said))
    return str(html.grid(cells) + html.notices(run.notes))


def facts(answer: Answer) -> list[tuple[str, str]]:
    """Tokens, time, FLOPs and cache of one answer."""
    report = answer.report
    rows = [
        ("visual tokens", f"{report.kept_tokens[0]} of {report.visual_tokens[0]}"),
        ("time", milliseconds(report.seconds["total"])),
        ("prefill FLOPs", amount(report.prefill_flops)),
        ("KV cache", amount(report.kv_bytes, "B")),
    ]
    return rows if report.guide_flops is None else [*rows, ("small model's FLOPs", amount(report.guide_flops))]


def costs(run: AskResult) -> str:
    """Bars that compare both costs; the pruned side includes its small model."""
    before, after = run.unpruned.report, run.pruned.report
    spent = after.prefill_flops + (after.guide_flops or 0)
    groups: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("Time of one run, small model included", before.seconds["total"], after.seconds["total"], milliseconds),
        ("Visual tokens, averaged over the layers", before.layer_avg_tokens, after.layer_avg_tokens, "{:.1f}".format),
        ("FLOPs of the prompt, small model included", before.prefill_flops, spent, amount),
        ("KV cache", before.kv_bytes, after.kv_bytes, lambda size: amount(size, "B")),
    ]
    return "".join(
        html.bars(f"{name}: {saved(full, part)} saved", [("unpruned", full, show(full)), ("pruned", part, show(part))])
        for name, full, part, show in groups
    )


def looked(run: AskResult, layer: int, heat: str) -> str:
    """The image with the tokens that one decoder layer sees and the heat map, and the heat map alone."""
    alive, visual = run.alive(layer), run.unpruned.report.visual_tokens[0]
    left = f"Decoder layer {layer} of 0 to {run.layers - 1} sees {alive} of {visual} visual tokens"
    if 0 < alive < visual and alive != run.pruned.report.kept_tokens[0]:
        left += "; bright are those that stay to the end"
    kept = run.span if alive < visual else None
    warmth, what = warm(run, layer, heat)
    both = overlay(run.image, kept=kept, heat=warmth)
    cells = [html.figure(both, f"The image. {left}; the dropped ones are dark. {what}", f"{left}.")]
    if warmth is not None:
        alone = overlay(run.image, heat=warmth)
        cells.append(html.figure(alone, f"Heat map for the question {run.question!r}: {what}", what))
    return str(html.grid(cells))


def warm(run: AskResult, layer: int, heat: str) -> tuple[Any, str]:
    """The heat map (a span and its values) and a sentence that explains it."""
    if heat == SMALL and run.small is not None:
        what = "Attention of the small model to the image, summed over its layers and its answer: what SGL ranks by."
        return (run.small.span, run.small.importance), what
    if heat == LARGE:
        if layer not in run.attention:
            return None, f"Layer {layer} of the large model does not look at the image."
        values = run.attention[layer][run.span.positions]
        part = float(run.attention[layer].sum())
        return (run.span, values), (
            f"Attention of the large model's last prompt token in layer {layer}, unpruned: {part:.0%} of it goes to "
            "the image."
        )
    return None, ""

