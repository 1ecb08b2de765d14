"""Reading a picture from a file as a person sees it; everything wrong with the file is said in one sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

from .errors import VlmpruneError

if TYPE_CHECKING:
    from PIL import Image


def suffixes() -> set[str]:
    """The lower-case endings of files that can be read, ".png" among them."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def picture(path: Path) -> Image.Image:
    """The image in a file as a person sees it: turned as its EXIF tag says, transparency on white, RGB."""
    if not path.exists():
        raise VlmpruneError(f"there is no file {str(path)!r}; give the path of an image")
    if not path.is_file():
        raise VlmpruneError(f"{str(path)!r} is not a file; give the path of an image")
    return decoded(path, str(path))


def decoded(source: Path | IO[bytes], name: str, *, most_pixels: int | None = None) -> Image.Image:
    """The image in a file or in bytes, as `picture` shows it.

    Args:
        name: what messages call it. most_pixels: refuse larger ones before they are unpacked; Pillow's limit unless
            given.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    limit = most_pixels or Image.MAX_IMAGE_PIXELS
    too_large = f"{name!r} has more than {limit:,} pixels; make it smaller first"
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit; such a picture fills the memory all the same.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as opened:
                if limit is not None and opened.width * opened.height > limit:
                    raise VlmpruneError(too_large)
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
        raise VlmpruneError(too_large) from None
    except UnidentifiedImageError:
        raise VlmpruneError(f"{name!r} is not an image; give a PNG, JPEG or WebP file") from None
    except VlmpruneError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for a damaged file
        raise VlmpruneError(f"{name!r} cannot be read as an image ({error}); check the file") from None
