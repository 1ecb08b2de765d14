"""Bundled images to ask about, and the inputs that several tabs share."""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

from ...harness.baselines import scored_families
from ...tiny import example
from .page import notice, on_input
from .upload import Unreadable, image_input

if TYPE_CHECKING:
    from PIL import Image

OWN = "My own image"
SCENES = 5  # beside the first


@functools.cache
def examples() -> dict[str, tuple[Image.Image, str]]:
    """Name -> image and question: the example of `vlmprune ask`, and one test scene of other kinds of questions."""
    from ...tiny.questions import benchmark

    found = {f"1. {example()[1]}": example()}
    for family in scored_families():
        scene, question = next(benchmark(family, 1, "test", start=40))
        found[f"{len(found) + 1}. {question.text}"] = scene.image(), question.text
        if len(found) > SCENES:
            break
    return found


def stored(name: str) -> str | None:
    """Where an example's image lies as a PNG file; None if there is no such example.

    Given the image itself, Gradio would write one and the same file every time somebody chooses the example, also while
    it is being sent to somebody else.
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


@dataclass(frozen=True)
class Inputs:
    """An image and, in most tabs, a question; `alert` is where the tab's errors stand."""

    alert: gr.HTML
    example: gr.Dropdown
    image: gr.Image
    question: gr.Textbox | None

    def triggers(self, button: gr.Button) -> list[Any]:
        """What starts the tab's work: its button, and Enter in the question."""
        return [button.click, *([] if self.question is None else [self.question.submit])]


def inputs(tab: str, *, question: bool = True) -> Inputs:
    """The inputs of one tab, the first example in them."""
    first, (_, words) = next(iter(examples().items()))
    alert = gr.HTML(elem_id=f"{tab}-alert")
    chosen = gr.Dropdown([*examples(), OWN], value=first, label="Example", elem_id=f"{tab}-example", filterable=False)
    shown = image_input(value=stored(first), elem_id=f"{tab}-image")
    box = (
        gr.Textbox(words, label="Question", max_lines=3, elem_id=f"{tab}-question", submit_btn=False)
        if question
        else None
    )

    def choose(name: str) -> Any:
        found = stored(name), examples().get(name, (None, ""))[1]
        return found if question else found[0]

    on_input(chosen, choose, chosen, [shown, box] if box is not None else [shown], queue=False)
    shown.upload(_upload_error, shown, alert, api_visibility="private", show_progress="hidden", queue=False)
    return Inputs(alert, chosen, shown, box)


def _upload_error(image: Any) -> str:
    """Say at once what is wrong with an upload."""
    return notice(image.reason) if isinstance(image, Unreadable) else ""
