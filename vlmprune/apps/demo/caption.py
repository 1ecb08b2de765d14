"""The tab Caption: the Patch Matters tree with every sentence, its score, and why it was kept or dropped."""

from collections.abc import Iterator
from functools import partial

import gradio as gr
from PIL import Image

from ...api import PrunedModel
from ...captioner import Caption
from ...captioner.caption import EDGES
from ...harness.format import facts
from ...harness.models import build_captioner, make
from .draw import scaled
from .engine import Engine, last
from .examples import examples, inputs
from .page import html, offer, on_open, on_start
from .thumbnails import THUMBNAILS

TITLE = "Caption"
SAMPLES = 3  # descriptions of each patch
FIRST = len(THUMBNAILS)  # the example that it opens with, whose caption names all things rightly


def describe(engine: Engine, image: Image.Image, samples: int, filtering: bool) -> Iterator[str | Caption]:
    """Progress, then the caption of an image."""
    yield "Describing the image and its patches"
    with engine.alone.wait():
        changes = {"samples": int(samples), "filter": bool(filtering)}
        made = build_captioner(engine.models, make("none"), None, changes, seed=0)
        try:
            caption = made(image)
        finally:
            if isinstance(made.vision.model, PrunedModel):
                made.vision.model.unwrap()
    yield caption


def opening(engine: Engine) -> Caption:
    """The caption that the tab opens with, made once."""
    image, _ = list(examples().values())[FIRST]
    found: Caption = engine.opened(TITLE, lambda: last(describe(engine, image, SAMPLES, True)))
    return found


def build(engine: Engine, tab: gr.Tab) -> None:
    """Add the tab to the page."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            alert, given = inputs("caption", question=False, number=FIRST)
            samples = gr.Slider(1, 5, SAMPLES, step=1, label="Descriptions of each patch", elem_id="caption-samples")
            filtering = gr.Checkbox(True, label="Drop sentences that do not fit the image", elem_id="caption-filter")
            go = gr.Button("Caption", variant="primary", elem_id="caption-go")
        with gr.Column(scale=3, min_width=300):
            final = gr.HTML(elem_id="caption-text")
            drawn = gr.HTML(elem_id="caption-image")
    tree = gr.HTML(elem_id="caption-tree")

    asked, work = [*given, samples, filtering], partial(describe, engine)
    outputs = [alert, final, drawn, tree]
    opened = on_open(tab, partial(opening, engine), shown, outputs)
    on_start(go, work, shown, asked, outputs, cancels=[opened], show_progress="minimal", show_progress_on=final)
    about = "Caption an image: the text, the patches, every sentence with its provenance, the cost."
    offer("caption", work, Caption.to_dict, asked, about)


def shown(caption: Caption) -> tuple[str, str, str]:
    """The caption with its cost, the image with its patches, and the tree."""
    assert caption.image is not None
    words = caption.text or "(no sentence of the model fits the image)"
    told = [one for one in caption.sentences if one.sample is not None]  # the others are made from these
    stay = sum(one.kept for one in told)
    said = f"{stay} of {len(told)} sentences of the descriptions stay; the tree says of each why."
    text = html.result(said) + html.grid([html.card("Caption", words, facts(caption))]) + html.notices(caption.notes)
    names = ", ".join(f"{one.name} {tuple(round(v) for v in one.box)}" for one in caption.patches)
    patches = html.figure(
        caption.overlay(scaled(caption.image)),
        f"The image with its {len(caption.patches)} patches framed: {names}.",
        "Patches in colour, the objects they hold in white.",
    )
    colours = {one.name: EDGES[i % len(EDGES)] for i, one in enumerate(caption.patches)}
    return text, patches, html.tree(caption.tree, colours)
