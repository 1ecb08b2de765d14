"""Reading an image from a file as a person sees it; everything wrong with the file is reported in one sentence."""

import contextlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from ..errors import VIDEO, VlmpruneError

# Pillow's names of the formats that are opened. It knows some forty more: EPS starts Ghostscript, others have decoders
# that nobody has tried on hostile files.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
OWN_FORMATS = (*FORMATS, "PPM")  # of a user's own files: PGM and PPM too
_UNKNOWN = "{!r} is not an image of a format that is read here; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
_HEIC = {".heic", ".heif"}
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}  # at the start of the file
_CLIPS = ("mp4", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "m4v", "ts", "m2ts", "wmv", "flv", "3gp", "ogv")
_BARE = ("h264", "h265", "hevc", "ivf")  # streams without a container
VIDEOS = frozenset(f".{kind}" for kind in _CLIPS + _BARE)
ANIMATED = frozenset({".gif", ".webp", ".png", ".apng"})  # may be images or clips
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)  # "C:/" is a path


def suffixes() -> set[str]:
    """The lower-case endings of files that can be read, ".png" among them; HEIC's too, since phones write it."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in OWN_FORMATS} | _HEIC


def size_of(source: Path | IO[bytes], name: str) -> tuple[int, int]:
    """Width and height as the header of a file of an allowed format says; nothing is unpacked."""
    with _reading(name), Image.open(source, formats=FORMATS) as opened:
        return opened.size


@contextmanager
def _reading(name: str, too_many: str = "pixels than are unpacked here") -> Iterator[None]:
    """Report in one sentence whatever a damaged or forged file makes decoders raise."""
    try:
        yield
    except VlmpruneError:
        raise
    except UnidentifiedImageError:
        raise VlmpruneError(_UNKNOWN.format(name)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise VlmpruneError(f"{name!r} has more {too_many}; make it smaller first") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise VlmpruneError(f"{name!r} cannot be read as an image ({reason}); check the file") from None


def refuse_address(path: str | os.PathLike[str], what: str = "image") -> None:
    """Raise where a path is an address in the web. `what` it should be a file of."""
    if _ADDRESS.match(str(path)):
        address = re.sub(r"^(\w+:)/+", r"\1//", str(path))  # a path has one slash of them
        raise VlmpruneError(f"{address!r:.80} is a web address; download the {what} and pass the path of its file")


def read_image(path: Path) -> Image.Image:
    """The image in a file as a person sees it: turned as its EXIF tag says, transparency on white, RGB."""
    refuse_address(path)
    if path.suffix.lower() in VIDEOS:
        raise VlmpruneError(VIDEO)
    try:
        there = path.exists()
    except OSError as error:  # a name too long, or a folder that may not be entered
        why = error.strerror or error
        raise VlmpruneError(f"{str(path)!r:.200} cannot be read ({why}); give the path of an image") from None
    if not there:
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
    if formats == OWN_FORMATS and _is_heic(source):
        formats = (*formats, _heif(name))
    limit = most_pixels or Image.MAX_IMAGE_PIXELS or math.inf
    with _reading(name, f"than {limit:,} pixels"), warnings.catch_warnings():
        # Pillow only warns between one and two times its limit; such an image fills the memory all the same.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(source, formats=formats) as opened:
            if opened.width * opened.height > limit:
                raise Image.DecompressionBombError
            return _rgb(opened, name)


def _is_heic(source: Path | IO[bytes]) -> bool:
    """Whether a file starts as HEIC does, whatever it is called."""
    with contextlib.suppress(OSError):  # it is reported where it is opened
        if isinstance(source, Path):
            with source.open("rb") as file:
                start = file.read(12)
        else:
            start = source.read(12)
            source.seek(0)
        return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS
    return False


def _heif(name: str) -> str:
    """Pillow's name of HEIC, once pillow-heif has told it how to read that."""
    try:
        import pillow_heif
    except ImportError:
        raise VlmpruneError(
            f"{name!r} is a HEIC image, which the package pillow-heif reads; install vlmprune[heic], or save the image "
            "as JPEG"
        ) from None
    pillow_heif.register_heif_opener()
    return "HEIF"


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
    with _reading(name):
        image.load()  # a file's image is unpacked here
        turned = _turned(image)
        if image.mode == "F" or image.mode.startswith("I"):
            return _grey(turned, image, name)
        if image.mode == "LAB":
            profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(turned, *profiles, outputMode="RGB")
            assert converted is not None  # only a transform in place gives nothing
            return converted
        return _on_white(turned)


def _turned(image: Image.Image) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image  # transposing would copy it, and one of 24 megapixels takes 96 MB
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block raises whatever its bytes lead to, and the image is good without it
        return image


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        # Pillow knows no way from La to RGBA but the one through LA.
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image, opened: Image.Image, name: str) -> Image.Image:
    """Numbers of more than 8 bits as RGB; see `as_rgb`. A turned image has forgotten its file, which `opened` knows."""
    values = np.asarray(image).astype(np.float64)
    tags = getattr(opened, "tag_v2", {}) if opened.format == "TIFF" else {}
    bits = tags.get(258, (16,))[0]
    if opened.mode == "I" and bits == 32 and tags.get(339, (1,))[0] == 1:
        values[values < 0] += 2.0**32  # unsigned ones come out negative
    if not np.isfinite(values).all():
        raise VlmpruneError(f"{name!r} holds values that are not finite; replace them first")
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PPM"):
        # A 16-bit PGM comes as 32-bit integers, and 12 bits of a TIFF as they are in 16.
        low, high = 0.0, float(2**bits - 1 if 8 < bits < 16 else 65535)
    else:
        low, high = float(values.min()), float(values.max())
        if opened.mode == "I" and low >= 0 and high <= 255:
            low, high = 0.0, 255.0
    if high == low:
        grey = np.full(values.shape, 0 if low == 0 else 128)
    else:
        grey = np.rint((values - low) / (high - low) * 255)
    if tags.get(262) == 0:  # 0 is white
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
