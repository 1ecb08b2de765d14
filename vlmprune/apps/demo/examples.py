"""Bundled images to ask about, and the inputs that several tabs share."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from ...errors import VlmpruneError
from ...inputs.images import read_image
from ...tiny import questions
from .page import html, on_input
from .thumbnails import THUMBNAILS
from .upload import checked, image_input

if TYPE_CHECKING:
    from PIL import Image

OWN = "My own image"
SCENES = (12, 0, 1)  # numbers of the bundled questions that come after the thumbnails


@functools.cache
def examples() -> dict[str, tuple[Image.Image, str]]:
    """Name -> image and question: the thumbnails of Ask, then some of the bundled questions."""
    shown = [thumbnail.asked() for thumbnail in THUMBNAILS]
    bundled = questions()
    shown += [(read_image(bundled[number]["image"]), bundled[number]["question"]) for number in SCENES]
    return {f"{number}. {question}": (image, question) for number, (image, question) in enumerate(shown, 1)}


def stored(name: str) -> str | None:
    """The path of an example's image as a PNG file; None if there is no such example.

    If Gradio got the image itself, it would rewrite one file whenever a visitor chooses the example, even while that
    file is being sent to another visitor.
    """
    if name not in examples():
        return None
    path = Path(get_upload_folder()) / "examples" / f"{list(examples()).index(name)}.png"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{threading.get_ident()}.part")
        examples()[name][0].save(part, "PNG")
        part.replace(path)
    return str(path)


def inputs(tab: str, *, question: bool = True, number: int = 0) -> tuple[gr.HTML, list[Any]]:
    """The shared inputs of a tab, filled with an example: its alert, and [image, question] or [image]."""
    first, (_, words) = list(examples().items())[number]
    alert = gr.HTML(elem_id=f"{tab}-alert")
    chosen = gr.Dropdown([*examples(), OWN], value=first, label="Example", elem_id=f"{tab}-example", filterable=False)
    boxes: list[Any] = [image_input(value=stored(first), elem_id=f"{tab}-image")]
    if question:
        boxes.append(gr.Textbox(words, label="Question", max_lines=3, elem_id=f"{tab}-question", submit_btn=False))

    def choose(name: str) -> Any:
        found = stored(name), examples().get(name, (None, ""))[1]
        return found if question else found[0]

    on_input(chosen, choose, chosen, boxes, queue=False)
    boxes[0].upload(complaint, boxes[0], alert, api_visibility="private", show_progress="hidden", queue=False)
    return alert, boxes


def complaint(image: Any) -> str:
    """The alert for an upload that cannot be used, shown before anything is asked."""
    try:
        checked(image)
    except VlmpruneError as error:
        return str(html.notice(str(error)))
    return ""
