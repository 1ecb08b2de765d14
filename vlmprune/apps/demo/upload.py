"""Uploaded images and clips: turned as their tags say, size limited, and only files that were uploaded to this page."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from ...errors import VlmpruneError
from ...inputs.images import VIDEOS, decoded
from ...inputs.video import Clip, read_clip
from ...inputs.video_file import ClipLimits

LARGEST_FILE = 20 * 2**20  # bytes
MOST_PIXELS = 24_000_000  # a phone's camera has 12 to 24 million
LARGEST_SIDE = 1536  # larger images are shrunk; without a limit one answer could take minutes
FRAMES = 16  # evenly spaced ones of a clip
FRAME_SIDE = 448  # pixels of a frame's longer side; larger ones are shrunk
CLIPS = sorted(VIDEOS | {".gif", ".webp", ".apng"})
# Five minutes; of 1920 x 1080 pixels a bit more than two.
CLIP_LIMITS = ClipLimits(bytes=64 * 2**20, seconds=300, pixel_seconds=3e8, packets=20_000)


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
    return _uploads_only(component)


def clip_input(**options: Any) -> gr.File:
    """An input for a clip's file; as `image_input`, and read by `checked_clip`."""
    made: gr.File = _uploads_only(gr.File(label="... or a clip", file_types=CLIPS, height=90, **options))
    return made


def _uploads_only(component: Any) -> Any:
    """The component without Gradio's own reading of its files, and without addresses in the web."""
    component.preprocess = lambda payload: payload
    fetch = component.async_move_resource_to_block_cache

    async def uploaded_only(source: str | Path | None) -> str | None:
        if source is not None and "://" in str(source):
            raise gr.Error("Images and clips are taken from uploads, not from web addresses.", print_exception=False)
        return await fetch(source)

    component.async_move_resource_to_block_cache = uploaded_only
    return component


def checked(payload: Any) -> Image.Image:
    """The image that `image_input` was given, if it is an upload of this page that `read` takes."""
    if payload is None:
        raise VlmpruneError("There is no image; upload one or choose an example.")
    path = _uploaded(payload, "image")
    return read(path, Path(payload.orig_name or path.name).name)


def checked_clip(payload: Any) -> Clip | None:
    """`FRAMES` frames of the clip that `clip_input` was given, if it is an upload of this page; None without one."""
    if payload is None:
        return None
    path = _uploaded(payload, "clip")
    name = Path(payload.orig_name or path.name).name
    try:
        clip = read_clip(path, frames=FRAMES, limits=CLIP_LIMITS)
    except VlmpruneError as error:  # visitors know the file by their own name for it
        raise VlmpruneError(str(error).replace(str(path), name)) from None
    return clip.scaled(min(1.0, FRAME_SIDE / max(clip.frames[0].size)))


def _uploaded(payload: Any, what: str) -> Path:
    """The file of an upload of this page."""
    if payload.path is None:
        raise VlmpruneError(f"The {what} came without a file; upload it again.")
    path = Path(payload.path)
    # Gradio checks this too.
    if Path(get_upload_folder()).resolve() not in path.resolve().parents:
        raise VlmpruneError(f"The {what} is not an upload of this page; upload it again.")
    return path
