"""Pieces of the page as HTML: every text from outside is escaped, every image has its alternative in words."""

from __future__ import annotations

import base64
import functools
import html
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import VlmpruneError

if TYPE_CHECKING:
    from PIL import Image

OUR_FAULT = "Something went wrong on the server, and its log says what; try again, or with another image."
log = logging.getLogger(__name__)
text = html.escape
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 1}


def sentence(message: str) -> str:
    """A message as a sentence of the page."""
    flat = " ".join(message.split()).rstrip(".") + "."
    # An option's name stays as it is written.
    return flat[:1].upper() + flat[1:] if flat.partition(" ")[0].isalpha() else flat


def notice(message: str, *, alert: bool = True) -> str:
    """An error, or (not `alert`) something a reader should know."""
    if not message:
        return ""
    kind, role = ("alert", "alert") if alert else ("note", "status")
    return f'<p class="vp-{kind}" role="{role}">{text(sentence(message))}</p>'


def with_notice(blank: Sequence[Any]) -> Callable[[Callable[..., Iterator[tuple[Any, ...]]]], Callable[..., Any]]:
    """A handler whose errors are a sentence on the page.

    Args:
        blank: what the handler's outputs show beside an error. The wrapped handler has one output more, in front of
            its own: the notice.
    """

    def around(handler: Callable[..., Iterator[tuple[Any, ...]]]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def run(*args: Any) -> Iterator[tuple[Any, ...]]:
            try:
                for outputs in handler(*args):
                    yield ("", *outputs)
            except VlmpruneError as error:
                yield (notice(str(error)), *blank)
            except Exception:
                log.exception("%s failed", handler.__name__)
                yield (notice(OUR_FAULT), *blank)

        return run

    return around


def plain_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for the API: the client gets the sentence as its error."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except VlmpruneError as error:
            raise gr.Error(sentence(str(error)), print_exception=False) from None
        except Exception:
            log.exception("%s failed", function.__name__)
            raise gr.Error(OUR_FAULT, print_exception=False) from None

    return run


def on_start(
    triggers: Sequence[Any], handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], **options: Any
) -> None:
    """Run `handler` when a button is clicked or a question sent, one such run at a time."""
    options = {"show_progress": "hidden", **ONE_AT_A_TIME, **options}
    gr.on(triggers, handler, inputs, outputs, api_visibility="private", **options)


def on_input(control: Any, handler: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> None:
    """Redraw when somebody moves `control`; needs no model."""
    control.input(handler, inputs, outputs, api_visibility="private", show_progress="hidden", **options)


def offer(function: Callable[..., Any], inputs: Sequence[Any], name: str, description: str) -> None:
    """An endpoint of the page's API that takes what the inputs take and returns JSON."""
    gr.Button(visible=False).click(
        plain_errors(function),
        inputs,
        gr.JSON(visible=False),
        api_name=name,
        api_description=description,
        **ONE_AT_A_TIME,
    )


def figure(image: Image.Image, alt: str, caption: str = "") -> str:
    """An image inside the page itself: no file, no address."""
    data = io.BytesIO()
    image.save(data, "PNG")
    source = base64.b64encode(data.getvalue()).decode()
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure class="vp-figure"><img alt="{text(alt)}" src="data:image/png;base64,{source}">{below}</figure>'


def grid(cells: Sequence[str]) -> str:
    """Side by side where there is room."""
    return f'<div class="vp-grid">{"".join(cells)}</div>'


def card(title: str, answer: str, facts: Sequence[tuple[str, str]] = (), *, busy: bool = False) -> str:
    """An answer with what it cost. `busy`: it is still being written."""
    rows = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts)
    below = f"<dl>{rows}</dl>" if rows else ""
    state = ' aria-busy="true"' if busy else ""
    inside = f'<h3>{text(title)}</h3><p class="vp-answer">{text(answer)}</p>{below}'
    return f'<section class="vp-card"{state}>{inside}</section>'


def bar(fraction: float, label: str) -> str:
    """A horizontal bar with its number beside it; the number is what a screen reader reads."""
    width = 100 * min(1.0, max(0.0, fraction))
    return (
        f'<span class="vp-bar"><span class="vp-track" aria-hidden="true"><span class="vp-fill" '
        f'style="width:{width:.1f}%"></span></span><span class="vp-number">{text(label)}</span></span>'
    )


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """A bar a row: its name, its value, and the value in words; the longest fills the width."""
    highest = max((value for _, value, _ in rows), default=0.0) or 1.0
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{bar(value / highest, label)}</td></tr>'
        for name, value, label in rows
    )
    return f'<table class="vp-bars"><caption>{text(title)}</caption><tbody>{body}</tbody></table>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table whose rows begin with their names; the columns after the first `words` hold numbers."""
    kinds = ["" if column < words else ' class="vp-num"' for column in range(len(headings))]
    head = "".join(f'<th scope="col"{kind}>{text(one)}</th>' for kind, one in zip(kinds, headings, strict=True))
    body = ""
    for name, *rest in rows:
        cells = "".join(f"<td{kind}>{text(one)}</td>" for kind, one in zip(kinds[1:], rest, strict=True))
        body += f'<tr><th scope="row">{text(name)}</th>{cells}</tr>'
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="vp-scroll"><table class="vp-table">{inside}</table></div>'


def notices(messages: Iterable[str]) -> str:
    """Things a reader should know, one below the other."""
    return "".join(notice(message, alert=False) for message in messages)
