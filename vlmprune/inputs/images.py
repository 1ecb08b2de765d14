"""Reading an image from a file as a person sees it; everything wrong with the file is reported in one sentence."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import VIDEO, VlmpruneError

if TYPE_CHECKING:
    from PIL import Image


# Pillow's names of the formats that are opened. It knows some forty more: EPS starts Ghostscript, others have decoders
# that nobody has tried on hostile files.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
OWN_FORMATS = (*FORMATS, "PPM")  # of a user's own files: PGM and PPM too
_UNKNOWN = "{!r} is not an image of a format that is read here; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
_VIDEOS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"}


def suffixes() -> set[str]:
    """The lower-case endings of files that can be read, ".png" among them."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in OWN_FORMATS}


def size_of(source: Path | IO[bytes], name: str) -> tuple[int, int]:
    """Width and height as the header of a file says; nothing is unpacked.

    Raises:
        VlmpruneError: it is no image of an allowed format.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=FORMATS) as opened:
            return opened.size
    except Exception as error:  # decoders raise whatever a forged header leads them to
        raise unreadable(name, error) from None


def unreadable(name: str, error: Exception) -> VlmpruneError:
    """What an exception of Pillow's says about a file, in one sentence."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, VlmpruneError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return VlmpruneError(_UNKNOWN.format(name))
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return VlmpruneError(f"{name!r} has more pixels than are unpacked here; make it smaller first")
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return VlmpruneError(f"{name!r} cannot be read as an image ({reason}); check the file")


def read_image(path: Path) -> Image.Image:
    """The image in a file as a person sees it: turned as its EXIF tag says, transparency on white, RGB."""
    if path.suffix.lower() in _VIDEOS:
        raise VlmpruneError(VIDEO)
    if not path.exists():
        raise VlmpruneError(f"there is no file {str(path)!r}; give the path of an image")
    if not path.is_file():
        raise VlmpruneError(f"{str(path)!r} is not a file; give the path of an image")
    return decoded(path, str(path), formats=OWN_FORMATS)


def decoded(
    source: Path | IO[bytes], name: str, *, most_pixels: int | None = None, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """The image in a file or in bytes, as `read_image` shows it.

    Args:
        name: what messages call it. most_pixels: refuse larger ones before they are unpacked; Pillow's limit unless
            given. formats: those that are opened.
    """
    from PIL import Image

    limit = most_pixels or Image.MAX_IMAGE_PIXELS
    too_large = f"{name!r} has more than {limit:,} pixels; make it smaller first"
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its limit; such an image fills the memory all the same.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=formats) as opened:
                if limit is not None and opened.width * opened.height > limit:
                    raise VlmpruneError(too_large)
                return _rgb(opened, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise VlmpruneError(too_large) from None
    except Exception as error:  # decoders raise whatever a forged file leads them to
        raise unreadable(name, error) from None


def as_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """An image of any mode as a person sees it: turned as its EXIF tag says, transparency on white, 8 bits a channel.

    16-bit greys are divided by 257 (65,535 is white), whatever brightness they reach. Floats and 32-bit integers have
    no range of their own: their smallest value turns black and their largest white, except integers that all lie in
    0..255, which stay as they are. Of an animation this is the frame it stands at, the first one of a file.

    Args:
        name: what messages call it.
    Raises:
        VlmpruneError: the file behind it is damaged, floats that are not finite, or a mode without colours.
    """
    made = _rgb(image, name)
    return image.copy() if made is image else made


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """The same, which may be the image itself: a copy of 24 megapixels takes 72 MB."""
    try:
        image.load()
        numbers = _numbers(image)  # first, because a turned image has forgotten which file it was
        image = _turned(image)
        if image.mode == "F" or image.mode.startswith("I"):
            return _grey(image, name, numbers)
        if image.mode == "LAB":
            return _from_lab(image)
        return _on_white(image)
    except Exception as error:  # a file's image is unpacked here, and decoders raise whatever it leads them to
        raise unreadable(name, error) from None


@dataclass(frozen=True)
class _Numbers:
    """What a file says of greys of more than 8 bits.

    `white`: the number that is white, None where the data decide. `wrapped`: large ones came out negative. `reverse`: 0
    is white.
    """

    white: float | None
    wrapped: bool = False
    reverse: bool = False


def _numbers(image: Image.Image) -> _Numbers:
    # A 16-bit PGM comes as 32-bit integers, and 12 bits of a TIFF as they are in 16.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits, reverse = tags.get(258, (16,))[0], tags.get(262) == 0
    white = float(2**bits - 1 if 8 < bits < 16 else 65535) if sixteen else None
    return _Numbers(white, wrapped=bits == 32 and tags.get(339, (1,))[0] == 1, reverse=reverse)


def _turned(image: Image.Image) -> Image.Image:
    from PIL import ExifTags, ImageOps

    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # transposing would copy it, and one of 24 megapixels takes 96 MB
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block raises whatever its bytes lead to, and the image is good without it
        return image


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.has_transparency_data:
        # Pillow knows no way from La to RGBA but the one through LA.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image, name: str, numbers: _Numbers) -> Image.Image:
    """Numbers of more than 8 bits as RGB; see `as_rgb`."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if numbers.wrapped and image.mode == "I":
        values[values < 0] += 2.0**32
    if not np.isfinite(values).all():
        raise VlmpruneError(f"{name!r} holds values that are not finite; replace them first")
    if numbers.white is not None:
        low, high = 0.0, numbers.white
    else:
        low, high = float(values.min()), float(values.max())
        if image.mode == "I" and low >= 0 and high <= 255:
            low, high = 0.0, 255.0
    if high == low:
        grey = np.full(values.shape, 0 if low == 0 else 128)
    else:
        grey = np.rint((values - low) / (high - low) * 255)
    if numbers.reverse:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    assert converted is not None  # only a transform in place gives nothing
    return converted
