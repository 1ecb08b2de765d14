"""The tab Ask: image, keep slider, question and both answers on one screen; everything else below, under "Details"."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from ...api import Answer
from ...harness.baselines import EXIT_AT
from ...harness.format import amount, milliseconds
from ...harness.models import options_of
from ...inputs.video import Clip
from .engine import MAX_NEW_TOKENS, Engine
from .examples import complaint, examples, stored
from .layers import LARGE, NONE, SMALL, looked
from .live import live, plain
from .page import UNSEEN, html, offer, on_input, on_start, reason, redraw
from .result import AskResult, Progress, in_a_sentence
from .snippet import OWN_CLIP, OWN_IMAGE, snippet
from .thumbnails import THUMBNAILS, Thumbnail
from .upload import checked, checked_clip, clip_input, image_input
from .world import COMMAND, is_pair

TITLE = "Ask"
ANSWERS = itertools.count(1)  # their numbers
ABOUT_CLIPS = "The same about a clip, of which evenly spaced frames are shown to the model."
ABOUT = (
    "Answer a question about an image, unpruned and pruned: the answers with their reports, as `vlmprune ask --json` "
    "prints them. The last argument is SGL's exit_at, null for never."
)


def pruners(engine: Engine) -> list[str]:
    """Names of the methods that take a budget and run with these models."""
    return [name for name in engine.runnable() if "keep" in options_of(name)]


def build(engine: Engine, tab: gr.Tab) -> None:
    """Add the tab to the page: it opens with the first thumbnail's answers."""
    said, banner, cards, code, costly, bars, looks, _, middle = drawn(engine, 0)
    thumbs, own, image, clip, question, keep, go, upload, picture = top(engine, middle)
    alert = gr.HTML(elem_id="ask-alert")
    state = gr.State(None)
    outside = gr.HTML(banner, elem_id="ask-outside")
    answers = gr.HTML(cards, elem_id="ask-answers")
    result = gr.HTML(said, elem_id="ask-result")
    with gr.Accordion("Details", open=False, elem_id="ask-details"):
        name, early, sure, leaving = options(engine)
        python = gr.HTML(code, elem_id="ask-python")
        facts = gr.HTML(costly, elem_id="ask-facts")
        cost = gr.HTML(bars, elem_id="ask-cost")
        heats = [LARGE, SMALL, NONE] if engine.models.small is not None else [LARGE, NONE]
        heat = gr.Radio(heats, value=LARGE, label="Heat map: what is looked at", elem_id="ask-heat")
        layer = gr.Slider(0, engine.deepest, engine.deepest, step=1, label="Decoder layer", elem_id="ask-layer")
        images = gr.HTML(looks, elem_id="ask-images")
    given, views = [image, clip, question], [layer, heat]
    outputs = [alert, result, outside, answers, python, facts, cost, images, state, picture]
    asking = on_start(
        go,
        lambda image, text, method, keep, early, sure: engine.ask(image, text, method, keep, sure if early else None),
        lambda news, *at: shown(engine, news, *at),
        [*given, name, keep, early, sure],
        outputs,
        views=views,
        stays=1,
    )
    instead: dict[str, Any] = {"cancels": [asking], "queue": False, **UNSEEN}
    boxes = [image, clip, question, name, keep, early, leaving, upload]
    for number, button in enumerate(thumbs):
        button.click(partial(chosen, engine, number), None, [*outputs, *boxes, *views], **instead)
    own.click(
        lambda: (*emptied(), "", None, None, "", gr.Group(visible=True)), None,
        [*outputs, image, clip, question, upload], **instead,
    )  # fmt: skip
    image.input(uploaded, image, [*outputs, upload, clip], **instead)
    clip.upload(partial(clip_uploaded, engine), clip, [*outputs, upload, image], **instead)
    redraw(looked, state, views, images, lambda: engine.example(0))
    rest = [question, name, keep, gr.Number(None, visible=False)]
    offer("ask", engine.ask, AskResult.to_dict, [image, *rest], ABOUT)
    offer("ask_clip", engine.ask, AskResult.to_dict, [clip, *rest], ABOUT_CLIPS)


def top(engine: Engine, middle: str) -> tuple[Any, ...]:
    """The examples, the image with its slider, and the question."""
    pair = is_pair(engine.models)
    with gr.Row(elem_id="ask-top"):
        with gr.Column(scale=1, min_width=120, elem_id="ask-thumbs"):
            thumbs = [
                gr.Button(
                    one.title if pair else one.asked()[1],
                    icon=stored_thumbnail(number), elem_id=f"ask-thumb-{number}", elem_classes="vp-thumb",
                )
                for number, one in enumerate(THUMBNAILS)
            ]  # fmt: skip
            own = gr.Button("Your own image or clip", elem_id="ask-own", elem_classes="vp-thumb")
        with gr.Column(scale=4, min_width=280):
            picture = gr.HTML(middle, elem_id="ask-picture")
            with gr.Group(visible="hidden", elem_id="ask-upload") as upload:
                image = image_input(value=stored_thumbnail(0), elem_id="ask-image")
                clip = clip_input(elem_id="ask-clip")
            keep = gr.Slider(
                0.02, 1.0, THUMBNAILS[0].keep, step=0.01, label="Keep (fraction of the visual tokens)",
                elem_id="ask-keep", buttons=[],
            )  # fmt: skip
            with gr.Row(elem_id="ask-line"):
                asked = engine.example(0).question
                question = gr.Textbox(asked, label="Question", max_lines=3, elem_id="ask-question", scale=4)
                go = gr.Button("Ask", variant="primary", elem_id="ask-go", scale=1, min_width=90)
    return thumbs, own, image, clip, question, keep, go, upload, picture


def options(engine: Engine) -> tuple[Any, ...]:
    """The method, and of SGL when the small model may answer alone."""
    method = engine.method_of(0)
    with gr.Row():
        name = gr.Dropdown(pruners(engine), value=method, label="Method", elem_id="ask-method", filterable=False)
        with gr.Group(visible="exit_at" in options_of(method)) as leaving:
            early = gr.Checkbox(False, label="Early exit: the small model may answer alone", elem_id="ask-early")
            sure = gr.Slider(0.0, 1.0, EXIT_AT, step=0.01, label="... when this sure", elem_id="ask-sure")
    on_input(name, lambda chosen: gr.Group(visible="exit_at" in options_of(chosen)), name, leaving, queue=False)
    return name, early, sure, leaving


def emptied() -> list[Any]:
    """Values of the outputs up to the state where nothing was asked."""
    return [""] * 9


def stored_thumbnail(number: int) -> str | None:
    """The file of a thumbnail's image."""
    return stored(list(examples())[number])


def drawn(engine: Engine, number: int) -> tuple[Any, ...]:
    """What is shown of a thumbnail's answers, made once."""
    run = engine.example(number)
    found: tuple[Any, ...] = engine.opened(f"drawn {number}", lambda: shown(engine, run, engine.deepest, LARGE))
    return found


def chosen(engine: Engine, number: int) -> tuple[Any, ...]:
    """A thumbnail's answers, which are there already, its inputs and the first view."""
    method, thumbnail = engine.method_of(number), THUMBNAILS[number]
    leaving, upload = gr.Group(visible="exit_at" in options_of(method)), gr.Group(visible="hidden")
    boxes = stored_thumbnail(number), None, thumbnail.asked()[1], method, thumbnail.keep, False, leaving, upload
    _, *rest = drawn(engine, number)
    truth = thumbnail.truth if is_pair(engine.models) else ""
    said = html.result(in_a_sentence(engine.example(number), truth), next(ANSWERS))
    return "", said, *rest, *boxes, engine.deepest, LARGE


def uploaded(payload: Any) -> tuple[Any, ...]:
    """The visitor's image in the middle of the page, and no answers yet; or why it cannot be used."""
    refused = complaint(payload) if payload is not None else ""
    if payload is None or refused:
        return refused, *emptied()[1:], "", gr.Group(visible=True), gr.skip()
    return *emptied(), plain(checked(payload)), gr.Group(visible="hidden"), None


def clip_uploaded(engine: Engine, payload: Any) -> tuple[Any, ...]:
    """The same with a clip."""
    try:
        clip = checked_clip(payload)
        engine.check_clip(clip)
        assert clip is not None
    except Exception as error:
        return str(html.notice(reason(error))), *emptied()[1:], "", gr.Group(visible=True), gr.skip()
    return *emptied(), plain(clip), gr.Group(visible="hidden"), None


def shown(engine: Engine, news: Progress | AskResult, layer: int, heat: str) -> tuple[Any, ...]:
    """Outputs but the alert, for the answers so far or for the final result."""
    banner = html.banner(news.outside, COMMAND) if news.outside else ""
    if isinstance(news, Progress):
        cells = [
            html.answer(side.title(), text, news.seconds[side], side == news.running)
            for side, text in news.texts.items()
        ]
        said = "" if news.running else html.notice("Both have answered; their times are being measured", alert=False)
        return said, banner, html.grid(cells), "", "", "", "", None, gr.skip()
    example, number = known(engine, news), next(ANSWERS)
    own = OWN_CLIP if isinstance(news.image, Clip) else OWN_IMAGE
    code = snippet(engine.models, example.code if example else own, news.question, news.method, MAX_NEW_TOKENS)
    return (
        html.result(in_a_sentence(news, example.truth if example else ""), number),
        banner,
        html.grid([
            html.answer("Unpruned", news.unpruned.text, news.unpruned.report.seconds["total"]),
            html.answer(f"Pruned: {described(news)}", news.pruned.text, news.pruned.report.seconds["total"]),
        ]),
        html.code(code),
        finished(news, number),
        costs(news),
        looked(news, layer, heat),
        news,
        live(news),
    )  # fmt: skip


def known(engine: Engine, run: AskResult) -> Thumbnail | None:
    """The thumbnail that this question and image are, if any."""
    for one in THUMBNAILS if is_pair(engine.models) else ():
        image, question = one.asked()
        if isinstance(run.image, Clip):
            continue
        if run.question == question and run.image.size == image.size and run.image.tobytes() == image.tobytes():
            return one
    return None


def described(run: AskResult) -> str:
    """The method with its budget."""
    made = run.pruned.report.method
    return f"{made['name']}, keep {made.get('keep', '-')}"


def finished(run: AskResult, number: int) -> str:
    """Cards with what both answers cost, and the small model's."""
    cells = [
        html.card("Unpruned", run.unpruned.text, facts(run.unpruned)),
        html.card(f"Pruned: {described(run)}", run.pruned.text, facts(run.pruned)),
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
    return str(html.grid(cells, number) + html.notices(run.pruned.report.notes))


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
    several = f"median of {run.runs} runs" if run.runs > 1 else "one run"
    groups: list[tuple[str, float, float, Callable[[float], str]]] = [
        (f"Time ({several}), small model included", before.seconds["total"], after.seconds["total"], milliseconds),
        ("Visual tokens, averaged over the layers", before.layer_avg_tokens, after.layer_avg_tokens, "{:.1f}".format),
        ("FLOPs of the prompt, small model included", before.prefill_flops, spent, amount),
        ("KV cache", before.kv_bytes, after.kv_bytes, lambda size: amount(size, "B")),
    ]
    return "".join(
        html.bars(f"{name}: {less(full, part)}", [("unpruned", full, show(full)), ("pruned", part, show(part))])
        for name, full, part, show in groups
    )


def less(full: float, part: float) -> str:
    """A saving, or what came on top."""
    return f"{abs(1 - part / full):.1%} {'less' if part <= full else 'more'}" if full else "-"
