"""The page's HTML, from the macros of `page.html`; and its handlers, whose errors are sentences of the page."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader

from ...errors import VlmpruneError
from .engine import last
from .upload import checked

if TYPE_CHECKING:
    from PIL import Image

OUR_FAULT = "Something went wrong on the server, and its log says what; try again, or with another image."
log = logging.getLogger(__name__)
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}


def sentence(message: str) -> str:
    """A message as a sentence of the page."""
    flat = " ".join(message.split()).rstrip(".") + "."
    # An option's name stays as it is written.
    return flat[:1].upper() + flat[1:] if flat.partition(" ")[0].isalpha() else flat


def png(image: Image.Image) -> str:
    """An image as an address that holds it: no file on the server."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_templates.filters |= {"sentence": sentence, "png": png}
html: Any = _templates.get_template("page.html").module


def reason(error: Exception) -> str:
    """What an error says to a visitor; a fault of ours goes to the log instead."""
    if isinstance(error, VlmpruneError):
        return sentence(str(error))
    log.error("the demo failed", exc_info=error)
    return OUR_FAULT


def read(inputs: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """What the inputs hold, uploads as images."""
    pairs = zip(inputs, given, strict=False)
    return [checked(value) if isinstance(box, gr.Image) else value for box, value in pairs]


def on_start(
    go: gr.Button,
    work: Callable[..., Iterable[Any]],
    show: Callable[..., tuple[Any, ...]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    views: Sequence[Any] = (),
    **options: Any,
) -> None:
    """Run a tab's work when `go` is clicked or a question sent, one tab at a time.

    Args:
        work: from the values of `inputs`, whatever is to be shown, as it comes; a str is progress. show: one of these
            and the values of `views`, as values of the `outputs` behind the first one, which is the alert.
    """

    blank = [""] * (len(outputs) - 2)

    def run(*given: Any) -> Iterable[tuple[Any, ...]]:
        yield "", "", *blank
        try:
            for found in work(*read(inputs, given)):
                if isinstance(found, str):
                    yield "", html.notice(found, alert=False), *blank
                else:
                    yield "", *show(found, *given[len(inputs) :])
        except Exception as error:
            yield html.notice(reason(error)), "", *blank

    options = {"show_progress": "hidden", **ONE_AT_A_TIME, **options}
    triggers = [go.click, *(box.submit for box in inputs if isinstance(box, gr.Textbox))]
    gr.on(triggers, run, [*inputs, *views], outputs, api_visibility="private", **options)


def on_input(control: Any, handler: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> None:
    """Redraw when somebody moves `control`; needs no model."""
    control.input(handler, inputs, outputs, api_visibility="private", show_progress="hidden", **options)


def redraw(draw: Callable[..., str], state: gr.State, views: Sequence[Any], output: gr.HTML) -> None:
    """Draw the result in `state` again when somebody moves one of `views`, once there is one."""
    for control in views:
        on_input(
            control,
            lambda found, *at: draw(found, *at) if found else "",
            [state, *views],
            output,
            trigger_mode="always_last",
        )


def offer(
    name: str, work: Callable[..., Iterable[Any]], record: Callable[[Any], Any], inputs: Sequence[Any], about: str
) -> None:
    """An endpoint of the page's API that takes what the inputs take: the last of `work`, as the JSON of `record`."""

    def run(*given: Any) -> Any:
        try:
            return record(last(work(*read(inputs, given))))
        except Exception as error:
            raise gr.Error(reason(error), print_exception=False) from None

    hidden = gr.JSON(visible=False)
    gr.Button(visible=False).click(run, inputs, hidden, api_name=name, api_description=about, **ONE_AT_A_TIME)
