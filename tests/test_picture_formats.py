"""Which image formats are opened, and what a decoder's exception becomes."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin, PpmImagePlugin

from vlmprune import VlmpruneError
from vlmprune.inputs.images import decoded, read_image, size_of, suffixes

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def file_of(kind: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (6, 4), 200 if mode in "LP1" else "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "MPO"])
def test_formats_that_are_read(kind: str) -> None:
    content = file_of(kind)
    assert size_of(io.BytesIO(content), "x") == (6, 4)
    image = decoded(io.BytesIO(content), "x")
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert image.getpixel((2, 2))[0] > 240


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "SGI", "DDS", "ICNS", "IM", "JPEG2000", "QOI", "AVIF"])
def test_formats_that_pillow_knows_and_we_do_not_open(kind: str) -> None:
    content = file_of(kind)
    Image.open(io.BytesIO(content)).load()
    for read in (size_of, decoded):
        with pytest.raises(VlmpruneError, match="PNG, JPEG, WebP, GIF, BMP or TIFF"):
            read(io.BytesIO(content), "x")


def test_ghostscript_is_never_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reached: list[Any] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **more: reached.append(args))
    assert Image.open(io.BytesIO(EPS)).format == "EPS"
    (tmp_path / "photo.png").write_bytes(EPS)  # what counts is the content
    with pytest.raises(VlmpruneError, match="not an image"):
        read_image(tmp_path / "photo.png")
    assert not reached


def test_only_their_endings_are_looked_for_in_folders() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= suffixes()
    assert not {".eps", ".ps", ".mpg", ".mpeg", ".pdf", ".ico", ".wmf", ".h5"} & suffixes()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("decoder"), NotImplementedError("mode"), SyntaxError("broken PNG file"), struct.error("unpack"),
        OSError("truncated"), EOFError(), ValueError("bad"), IndexError("range"), KeyError("tag"), TypeError("none"),
        ZeroDivisionError("by zero"), OverflowError("large"), MemoryError(), AttributeError("tile"), AssertionError(),
        Image.DecompressionBombError("large"), Image.DecompressionBombWarning("large"), UserWarning("odd\nEXIF\tdata"),
    ],
    ids=repr,
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*args: Any, **more: Any) -> None:
        raise error

    content = file_of("PNG")
    for method, read in (("load", decoded), ("_open", size_of), ("_open", decoded)):
        with monkeypatch.context() as patch:
            patch.setattr(PngImagePlugin.PngImageFile, method, fails)
            with pytest.raises(VlmpruneError) as caught:
                read(io.BytesIO(content), "x")
        assert "\n" not in str(caught.value)
        assert "'x'" in str(caught.value)


def test_an_image_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RGB image of 24 megapixels takes 96 MB; `convert` and `exif_transpose` would each hold a second one."""
    content = file_of("PNG")
    monkeypatch.setattr(Image.Image, "copy", lambda self: pytest.fail("copied"))
    assert decoded(io.BytesIO(content), "x").mode == "RGB"


def test_a_plugin_that_is_loaded_changes_nothing() -> None:
    assert PpmImagePlugin.PpmImageFile.format == "PPM"
    with pytest.raises(VlmpruneError, match="not an image"):
        decoded(io.BytesIO(b"P5 2 2 255\n\0\0\0\0"), "x")
