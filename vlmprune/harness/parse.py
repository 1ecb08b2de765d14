"""Parses what users type; every error is one sentence."""

import re
from pathlib import Path

from ..errors import VlmpruneError


def number(text: str, option: str = "") -> int | float:
    """The value of ``--keep`` or ``--layer``: ``1`` is an int (one token), ``1.0`` a float (all of them).

    The library checks the range.
    """
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:
        raise VlmpruneError(
            f"{option} {text!r} is not a number; give a whole number or a fraction like 0.25".lstrip()
        ) from None


def writable_image(path: Path | None, *, source: Path | None = None) -> None:
    """Check that an image can be saved at this path, if there is one, before minutes are spent on an answer."""
    from PIL import Image

    if path is None:
        return
    writers = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in writers:
        raise VlmpruneError(f"no image can be written as {path.name!r}; end the name in .png")
    if path.is_dir():
        raise VlmpruneError(f"{str(path)!r} is a directory; give the name of a file")
    if source is not None and path.exists() and path.samefile(source):
        raise VlmpruneError(f"{str(path)!r} is the image asked about; save the overlay under another name")
    if not path.parent.is_dir():
        raise VlmpruneError(f"there is no directory {str(path.parent)!r}; make it first")
