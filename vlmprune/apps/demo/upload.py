"""Uploaded images: EXIF orientation applied, size limited, and only files that were uploaded to this page."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from ...errors import VlmpruneError
from ...inputs.images import decoded

LARGEST_FILE = 20 * 2**20  # bytes
MOST_PIXELS = 24_000_000  # a phone's camera has 12 to 24 million
LARGEST_SIDE = 1536  # larger images are shrunk; without a limit one answer could take minutes


def read(path: Path, name: str) -> Image.Image:
    """An uploaded image, turned as its EXIF tag says, RGB, at most `LARGEST_SIDE` pixels a side."""
    if path.stat().st_size > LARGEST_FILE:
        raise VlmpruneError(f"{name!r} is larger than {LARGEST_FILE >> 20} MB; make it smaller first")
    image = decoded(path, name, most_pixels=MOST_PIXELS)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return image


def image_input(label: str = "Image", **options: Any) -> gr.Image:
    """An input for uploads, webcam and clipboard; its listeners get the payload, which `checked` reads."""
    # PNG, because the shown image is sent back with the question, and WebP would change its pixels.
    component = gr.Image(
        label=label, sources=["upload", "webcam", "clipboard"], format="png", buttons=[], height=300, **options
    )
    # On the instance: Gradio writes a .pyi file beside the source of every subclass of its components.
    component.preprocess = lambda payload: payload
    fetch = component.async_move_resource_to_block_cache

    async def uploaded_only(source: str | Path | None) -> str | None:
        if source is not None and "://" in str(source):
            raise gr.Error("Images are taken from uploads, not from web addresses.", print_exception=False)
        return await fetch(source)

    component.async_move_resource_to_block_cache = uploaded_only
    return component


def checked(payload: Any) -> Image.Image:
    """The image that `image_input` was given, if it is an upload of this page that `read` takes."""
    if payload is None:
        raise VlmpruneError("There is no image; upload one or choose an example.")
    if payload.path is None:
        raise VlmpruneError("The image came without a file; upload it again.")
    path = Path(payload.path)
    # Gradio checks this too.
    if Path(get_upload_folder()).resolve() not in path.resolve().parents:
        raise VlmpruneError("The image is not an upload of this page; upload it again.")
    return read(path, Path(payload.orig_name or path.name).name)
