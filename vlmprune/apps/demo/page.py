"""The page's look, its HTML from the macros of `page.html`, and its event handlers, which show errors as sentences."""

import base64
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ...errors import VlmpruneError
from .engine import last
from .upload import checked, checked_clip

FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]  # nothing is fetched
MONO = ["ui-monospace", "Consolas", "monospace"]
OUR_FAULT = "Something went wrong on the server, and its log says what; try again, or with another image."
UNSEEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
log = logging.getLogger(__name__)
QUEUE = 64  # visitors who wait at once; `Engine.alone` lets one in at a time and tells the others their place
AT_THE_MODELS: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": QUEUE}


def sentence(message: str) -> str:
    """A message with a capital letter and a full stop."""
    flat = " ".join(message.split()).rstrip(".") + "."
    # The name of an option keeps its case.
    return flat[:1].upper() + flat[1:] if flat.partition(" ")[0].isalpha() else flat


def png(image: Image.Image) -> str:
    """An image as a data URL: no file on the server."""
    data = io.BytesIO()
    image.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_templates.filters |= {"sentence": sentence, "png": png}
html: Any = _templates.get_template("page.html").module
CSS, SCRIPT = (Path(__file__).with_name(f"theme.{kind}").read_text() for kind in ("css", "js"))


def theme() -> Any:
    """Quiet greys and one accent, in light and dark, down to phone widths."""
    return gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        # Slate 400, the default, has a contrast of 2.6 on white; small print needs 4.5.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        block_shadow="none",
        block_shadow_dark="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


def reason(error: Exception) -> str:
    """The sentence that a visitor reads about an error; the details of our own bugs go to the log."""
    if isinstance(error, VlmpruneError):
        return sentence(str(error))
    log.error("the demo failed", exc_info=error)
    return OUR_FAULT


def read(inputs: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """The values of the inputs, with uploads read as images and clips; beside an image a clip stands in its place."""
    pairs = list(zip(inputs, given, strict=False))
    clip = next((checked_clip(value) for box, value in pairs if isinstance(box, gr.File)), None)
    both = any(isinstance(box, gr.Image) for box, _ in pairs)
    values = []
    for box, value in pairs:
        if isinstance(box, gr.Image):
            values.append(checked(value) if clip is None else clip)
        elif not isinstance(box, gr.File):
            values.append(value)
        elif not both:
            if clip is None:
                raise VlmpruneError("There is no clip; upload one.")
            values.append(clip)
    return values


def on_start(
    go: gr.Button,
    work: Callable[..., Iterable[Any]],
    show: Callable[..., tuple[Any, ...]],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    views: Sequence[Any] = (),
    stays: int = 0,
    **options: Any,
) -> Any:
    """Run a tab's work when `go` is clicked or Enter is pressed in a question, one run at a time.

    A click during a run starts another after it: Gradio, which would ignore it, counts a run as going on for a while
    after its result is shown.

    Args:
        work: takes the values of `inputs` and yields results; a str is progress. show: takes a result and the values
            of `views` and returns values for `outputs`, without the first output, which is the alert. stays: so many
            of the last outputs are not emptied at the start.
    Returns:
        The event, for others to cancel.
    """

    blank = [""] * (len(outputs) - 2 - stays) + [gr.skip()] * stays

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

    options = {"show_progress": "hidden", "trigger_mode": "always_last", **AT_THE_MODELS, **options}
    triggers = [go.click, *(box.submit for box in inputs if isinstance(box, gr.Textbox))]
    return gr.on(triggers, run, [*inputs, *views], outputs, api_visibility="private", **options)


def on_open(
    tab: gr.Tab,
    make: Callable[[], Any],
    show: Callable[..., tuple[Any, ...]],
    outputs: Sequence[Any],
    views: Sequence[Any] = (),
) -> Any:
    """Show what a tab opens with, the first time that a visitor opens it; as `on_start`, with no inputs."""
    done = gr.State(False)

    def run(shown: bool, *at: Any) -> Iterable[tuple[Any, ...]]:
        if shown:
            yield True, *[gr.skip()] * len(outputs)
            return
        blank = [""] * (len(outputs) - 2)
        yield True, "", html.notice("An example is being computed", alert=False), *blank
        try:
            yield True, "", *show(make(), *at)
        except Exception as error:
            yield True, html.notice(reason(error)), "", *blank

    return tab.select(run, [done, *views], [done, *outputs], concurrency_limit=QUEUE, **UNSEEN)


def on_input(control: Any, handler: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> None:
    """Call `handler` when a visitor changes `control`, also while it still runs; for handlers that need no model."""
    control.input(handler, inputs, outputs, trigger_mode="always_last", **UNSEEN, **options)


def redraw(
    draw: Callable[..., str],
    state: gr.State,
    views: Sequence[Any],
    output: gr.HTML,
    first: Callable[[], Any] = lambda: None,
) -> None:
    """Draw the result in `state` again when a visitor changes one of `views`; None there is what the tab opens with."""
    for control in views:
        on_input(
            control,
            lambda found, *at: draw(one, *at) if found != "" and (one := found or first()) else "",
            [state, *views],
            output,
        )


def offer(
    name: str, work: Callable[..., Iterable[Any]], record: Callable[[Any], Any], inputs: Sequence[Any], about: str
) -> None:
    """Add an API endpoint that takes the same inputs and returns `record` of the last result of `work` as JSON."""

    def run(*given: Any) -> Any:
        try:
            return record(last(work(*read(inputs, given))))
        except Exception as error:
            raise gr.Error(reason(error), print_exception=False) from None

    hidden = gr.JSON(visible=False)
    gr.Button(visible=False).click(run, inputs, hidden, api_name=name, api_description=about, **AT_THE_MODELS)
