"""The tab Caption: the Patch Matters tree, with every sentence, its score, and why it was kept or dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...api import PrunedModel
from ...captioner.caption import EDGES
from ...harness.format import amount, milliseconds
from ...harness.models import build_captioner, make
from .draw import shown
from .engine import Engine, Send
from .examples import inputs
from .page import card, figure, grid, notice, notices, offer, on_start, text, with_notice
from .upload import checked

if TYPE_CHECKING:
    from PIL import Image

    from ...captioner import Caption
    from ...captioner.caption import Node

TITLE = "Caption"


def describe(engine: Engine, image: Image.Image, samples: int, filtering: bool) -> Caption:
    """The caption of an image."""

    def work(send: Send) -> None:
        changes = {"samples": int(samples), "filter": bool(filtering)}
        made = build_captioner(engine.models, make("none"), None, changes, seed=0)
        try:
            send(made(image))
        finally:
            if isinstance(made.vision.model, PrunedModel):
                made.vision.model.unwrap()

    (caption,) = engine.stream(work)
    return caption


def build(engine: Engine) -> None:
    """Put the tab on the page."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            given = inputs("caption", question=False)
            samples = gr.Slider(1, 5, 3, step=1, label="Descriptions of each patch", elem_id="caption-samples")
            filtering = gr.Checkbox(True, label="Drop sentences that do not fit the image", elem_id="caption-filter")
            go = gr.Button("Caption", variant="primary", elem_id="caption-go")
        with gr.Column(scale=3, min_width=300):
            final = gr.HTML(elem_id="caption-text")
            drawn = gr.HTML(elem_id="caption-image")
    tree = gr.HTML(elem_id="caption-tree")

    @with_notice(("", "", ""))
    def run(image: Any, samples: int, filtering: bool) -> Iterator[tuple[Any, ...]]:
        shown_image = checked(image)
        yield notice("Describing the image and its patches", alert=False), "", ""
        caption = describe(engine, shown_image, samples, filtering)
        whole = f'<ul class="vp-tree">{branch(caption.tree, caption)}</ul>'
        yield summed(caption), patches(caption, shown_image), whole

    asked = [given.image, samples, filtering]
    shown_on = {"show_progress": "minimal", "show_progress_on": final}
    on_start([go.click], run, asked, [given.alert, final, drawn, tree], **shown_on)

    def caption_api(image: Any, samples: int, filtering: bool) -> dict[str, Any]:
        return describe(engine, checked(image), samples, filtering).to_dict()

    about = "Caption an image: the text, the patches, every sentence with its fate, the cost."
    offer(caption_api, asked, "caption", about)


def summed(caption: Caption) -> str:
    """The final caption and what it took."""
    cost = caption.cost
    said = [one for one in caption.sentences if one.sample is not None]
    facts = [
        ("sentences kept", f"{sum(one.kept for one in said)} of {len(said)}"),
        ("calls", ", ".join(f"{stage} {count}" for stage, count in cost.calls.items())),
        ("time", ", ".join(f"{stage} {milliseconds(value)}" for stage, value in cost.seconds.items())),
        ("visual tokens into the model", str(cost.visual_tokens)),
    ]
    if cost.prefill_flops is not None:
        facts.append(("prefill FLOPs", amount(cost.prefill_flops)))
    words = caption.text or "(nothing that the model said fits the image)"
    return grid([card("Caption", words, facts)]) + notices(caption.notes)


def patches(caption: Caption, image: Image.Image) -> str:
    """The boxes on the image."""
    names = ", ".join(f"{one.name} {tuple(round(v) for v in one.box)}" for one in caption.patches)
    drawing = caption.overlay(shown(image))
    return figure(
        drawing,
        f"The image with its {len(caption.patches)} patches framed: {names}.",
        "Patches in colour, the objects they hold in white.",
    )


def branch(node: Node, caption: Caption) -> str:
    """A part of the image: its box, its sentences, the parts inside."""
    colours = {one.name: EDGES[i % len(EDGES)] for i, one in enumerate(caption.patches)}
    swatch = ""
    if node.name in colours:
        swatch = f'<span class="vp-swatch" aria-hidden="true" style="background:rgb{colours[node.name]}"></span>'
    box = ", ".join(f"{v:g}" for v in node.box)
    said = "".join(said_one(one) for one in node.sentences)
    inside = "".join(branch(child, caption) for child in node.children)
    return (
        f'<li>{swatch}<span class="vp-patch">{text(node.name)}</span> <span class="vp-why">({box})</span>'
        f"<ul>{said}{inside}</ul></li>"
    )


def said_one(one: Any) -> str:
    """A sentence with its score and its fate."""
    fate = "kept" if one.kept else "dropped"
    who = f"description {one.sample}" if one.sample is not None else f"made from {list(one.sources)}"
    score = "no score" if one.score is None else f"score {one.score:.2f}"
    return (
        f'<li class="vp-said vp-{fate}"><span class="vp-words">[{one.number}] {text(one.text)}</span> '
        f'<span class="vp-why">{fate}: {text(one.reason)} ({text(who)}, {text(one.label or "no class")}, {score})'
        "</span></li>"
    )
