"""What a user typed, turned into what the library takes; everything wrong with it is said in one sentence."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import VlmpruneError

if TYPE_CHECKING:
    from PIL import Image


def number(option: str, text: str | None) -> int | float | None:
    """The value of ``--keep`` or ``--layer``: ``1`` is an int (one token), ``1.0`` a float (all of them).

    The range is the library's to check; this only reads the text.
    """
    if text is None:
        return None
    try:
        return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
    except ValueError:
        raise VlmpruneError(f"{option} {text!r} is not a number; give a whole number or a share like 0.25") from None


def asked(question: str) -> str:
    """The question, refused when there is nothing in it."""
    if not question.strip():
        raise VlmpruneError("the question is empty; put it in quotes after the image")
    return question


def picture(path: Path) -> Image.Image:
    """The image in a file as a person sees it: turned as its EXIF tag says, transparency on white, RGB."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.exists():
        raise VlmpruneError(f"there is no file {str(path)!r}; give the path of an image")
    if not path.is_file():
        raise VlmpruneError(f"{str(path)!r} is not a file; give the path of an image")
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit; such a picture fills the memory all the same.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                turned = ImageOps.exif_transpose(opened)
        if turned.mode.startswith("I;16"):
            # Converted directly, 16-bit greys above 255 all turn white.
            turned = turned.point(lambda value: value / 256, "L")
        if turned.has_transparency_data:
            rgba = turned.convert("RGBA")
            turned = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return turned.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise VlmpruneError(
            f"{str(path)!r} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller first"
        ) from None
    except UnidentifiedImageError:
        raise VlmpruneError(f"{str(path)!r} is not an image; give a PNG, JPEG or WebP file") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for a damaged file
        raise VlmpruneError(f"{str(path)!r} cannot be read as an image ({error}); check the file") from None


def writable_image(path: Path, *, source: Path | None = None) -> Path:
    """A path an overlay can be saved under, checked before minutes are spent on the answer."""
    from PIL import Image

    writers = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if path.suffix.lower() not in writers:
        raise VlmpruneError(f"no image can be written as {path.name!r}; end the name in .png")
    if path.is_dir():
        raise VlmpruneError(f"{str(path)!r} is a directory; give the name of a file")
    if source is not None and path.exists() and path.samefile(source):
        raise VlmpruneError(f"{str(path)!r} is the image asked about; save the overlay under another name")
    if not path.parent.is_dir():
        raise VlmpruneError(f"there is no directory {str(path.parent)!r}; make it first")
    return path
