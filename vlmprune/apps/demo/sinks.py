"""The tab Sinks: a model's attention sinks by layer, and what VAR changes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import torch
from PIL import Image

import vlmprune

from ...api import Answer, wrap
from ...flow.sinks import eligible_layers
from ...hf.arguments import to_device
from ...inputs.chat import prepare
from ...sinks.report import SinkReport
from ...sinks.sample import SampleSinks
from .draw import colour, overlay
from .engine import GREEDY, Engine, last
from .examples import examples, inputs
from .page import html, offer, on_open, on_start, redraw

TITLE = "Sinks"
P, RHO = 0.4, 0.5  # VAR's own defaults
WORDS = 4  # how many of the likeliest first tokens are shown


@dataclass(frozen=True)
class SinkResult:
    """The sinks of an image and question, and the answers without and with VAR.

    `words`: the likeliest first tokens, each with its probability without and with VAR.
    """

    image: Image.Image
    report: SinkReport
    before: Answer
    after: Answer
    words: tuple[tuple[str, float, float], ...]

    @property
    def sample(self) -> SampleSinks:
        return self.report.samples[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "sinks": self.report.to_dict(),
            "without_var": self.before.text,
            "with_var": self.after.text,
            "first_token": [dict(zip(("token", "without", "with"), word, strict=True)) for word in self.words],
            "notes": self.after.report.notes,
        }


def find_and_edit(engine: Engine, image: Image.Image, question: str, p: float, rho: float) -> Iterator[Any]:
    """Progress, then the sinks and the answers without and with VAR."""
    question = engine.asked(question)
    method = vlmprune.VAR(p=float(p), rho=float(rho))
    yield "Reading every layer, without and with VAR"
    model, processor = engine.models.model, engine.models.processor
    with engine.alone.wait():
        given = to_device(model, dict(prepare(processor, image, question)))
        report = vlmprune.find_sinks(model, **given)
        answers, chances = [], []
        for made in (vlmprune.Unpruned(), method):
            with wrap(model, made, processor=processor) as pruned, torch.no_grad():
                answers.append(pruned.ask(image, question, **GREEDY))
                chances.append(model(**given, use_cache=False).logits[0, -1].float().softmax(dim=-1))
        best = torch.maximum(*chances).topk(WORDS).indices.tolist()
        words = tuple(
            (processor.decode([i]).strip() or repr(i), float(chances[0][i]), float(chances[1][i])) for i in best
        )
    yield SinkResult(image, report, answers[0], answers[1], words)


def opening(engine: Engine) -> SinkResult:
    """The sinks of the first example, found once."""
    image, question = next(iter(examples().values()))
    found: SinkResult = engine.opened(TITLE, lambda: last(find_and_edit(engine, image, question, P, RHO)))
    return found


def build(engine: Engine, tab: gr.Tab) -> None:
    """Add the tab to the page."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            alert, given = inputs("sinks")
            p = gr.Slider(0.0, 1.0, P, step=0.05, label="VAR: fraction of a sink that is moved", elem_id="sinks-p")
            rho = gr.Slider(
                0.0, 1.0, RHO, step=0.05, label="VAR: least fraction of a head off the sinks", elem_id="sinks-rho"
            )
            go = gr.Button("Find sinks", variant="primary", elem_id="sinks-go")
        with gr.Column(scale=3, min_width=300):
            changed = gr.HTML(elem_id="sinks-changed")
            layer = gr.Slider(0, engine.deepest, engine.deepest, step=1, label="Decoder layer", elem_id="sinks-layer")
            image = gr.HTML(elem_id="sinks-heat")
    counts = gr.HTML(elem_id="sinks-layers")
    state = gr.State(None)

    asked, work = [*given, p, rho], partial(find_and_edit, engine)
    outputs = [alert, changed, image, counts, state]
    opened = on_open(tab, partial(opening, engine), shown, outputs, [layer])
    on_start(go, work, shown, asked, outputs, views=[layer], cancels=[opened])
    redraw(heat, state, [layer], image)
    about = "Attention sinks of an image and question, and the answers without and with VAR."
    offer("sinks", work, SinkResult.to_dict, asked, about)


def shown(found: SinkResult, layer: int) -> tuple[Any, ...]:
    """The tab's outputs; the last one is the state, to draw other layers from."""
    return compared(found), heat(found, layer), by_head(found) + by_layer(found), found


def in_a_sentence(found: SinkResult) -> str:
    """The head that looks at sinks most, and what VAR did to the answer."""
    shares = found.sample.sink_share.nan_to_num()
    sinks = {token for row in found.sample.visual_sinks for token in row}
    if not sinks:
        said = "None of the visual tokens is a sink in any layer"
    else:
        layer, head = divmod(int(shares.argmax()), shares.shape[1])
        tokens = f"{len(sinks)} visual token{'s are sinks' if len(sinks) > 1 else ' is a sink'}"
        most = f"{float(shares.max()):.0%} of its attention to the image"
        said = f"{tokens}; head {head} of layer {layer} gives them {most}"
    same = found.before.text == found.after.text
    return f"{said}. With VAR the answer is {'the same' if same else repr(found.after.text)}."


def by_head(found: SinkResult) -> str:
    """Two maps of the heads: how much each looks at the image, and how much of that goes to visual sinks."""
    one = found.sample
    changed = {(layer, head) for layer, heads in enumerate(one.gated_heads) for head in heads}
    maps = (
        ("Head importance: attention of the text to the image; framed: changed by VAR", one.image_attention, changed),
        ("Of that attention, fraction on visual sinks", one.sink_share, set[tuple[int, int]]()),
    )
    drawn = []
    for about, values, framed in maps:
        most = max(float(values.nan_to_num().max()), 0.01)
        rows = [
            [
                ((i, j) in framed, colour(value / most), f"layer {i}, head {j}: {value:.0%}")
                for j, value in enumerate(row)
            ]
            for i, row in enumerate(values.nan_to_num().tolist())
        ]
        drawn.append(html.heads(about, rows, f"{most:.0%}"))
    return str(html.grid(drawn))


def compared(found: SinkResult) -> str:
    """The answers without and with VAR, the probabilities of the first token, and the notes."""
    moved = sum(len(heads) for heads in found.sample.gated_heads)
    heads = found.sample.gated.shape[1] * len(eligible_layers(found.sample.layers))
    cells = [
        html.card("Without VAR", found.before.text),
        html.card("With VAR", found.after.text, [("heads that it changed", f"{moved} of {heads}")]),
    ]
    chances = [(word, f"{a:.1%}", f"{b:.1%}") for word, a, b in found.words]
    notes = dict.fromkeys([*found.report.notes, *found.after.report.notes])
    table = html.table(("first token", "without", "with VAR"), chances)
    return str(html.result(in_a_sentence(found)) + html.grid(cells) + table + html.notices(notes))


def heat(found: SinkResult, layer: int) -> str:
    """phi of every visual token entering a layer, sinks framed."""
    one = found.sample
    span = one.images[0]
    values, sinks = one.phi[layer][one.visual[span.positions]], one.sinks[layer][one.visual[span.positions]]
    drawn = overlay(found.image, heat=(span, values), framed=(span, sinks))
    number, highest = int(sinks.sum()), float(values.max())
    caption = f"phi entering layer {layer}: the highest of {len(values)} visual tokens is {highest:.1f}"
    if found.report.dims:
        caption += f"; {number} are sinks (framed), from tau {found.report.tau:.1f} on."
    else:
        caption += ". None is a sink, since this model has no sink dimensions."
    return str(html.figure(drawn, f"Heat map over the image, {caption}", caption))


def by_layer(found: SinkResult) -> str:
    """Bars per layer: sinks, the fraction of attention they take, and heads that VAR changes."""
    one = found.sample
    counts = [(len(a), len(b)) for a, b in zip(one.visual_sinks, one.text_sinks, strict=True)]
    sinks = [(f"layer {i}", float(a + b), f"{a} visual, {b} text") for i, (a, b) in enumerate(counts)]
    fractions = one.sink_share.mean(dim=1).tolist()
    taken = [(f"layer {i}", fraction, f"{fraction:.1%}") for i, fraction in enumerate(fractions)]
    heads = [(f"layer {i}", float(len(found)), str(len(found))) for i, found in enumerate(one.gated_heads)]
    dims = ", ".join(map(str, found.report.dims)) or "none"
    bars = [
        html.bars(f"Sinks a layer (sink dimensions: {dims})", sinks),
        html.bars("Of the attention to the image, fraction on visual sinks (mean over heads)", taken),
        html.bars("Heads that VAR changes", heads),
    ]
    return str(html.grid(bars))
