"""HEIC, which phones write: read through pillow-heif, one sentence where it is not installed."""

from __future__ import annotations

import io
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from eval.tasks.base import Sample
from vlmprune import VlmpruneError
from vlmprune.captioner.folder import image_paths
from vlmprune.inputs.images import decoded, read_image, suffixes

HAS_HEIF = find_spec("pillow_heif") is not None
# The first box of a HEIC file, and of others of its family.
BOXES = {
    brand: b"\0\0\0\x18ftyp" + brand + bytes(12) for brand in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"isom")
}


def heic(size: tuple[int, int] = (64, 48)) -> bytes:
    import pillow_heif

    file = io.BytesIO()
    image = Image.new("RGB", size, (200, 30, 60))
    image.paste((20, 90, 220), (0, 0, size[0] // 2, size[1]))
    pillow_heif.from_pillow(image).save(file, quality=95)
    return file.getvalue()


@pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is an optional extra")
@pytest.mark.parametrize("name", ["photo.heic", "photo.HEIF", "photo.jpg"])
def test_a_photograph(name: str, tmp_path: Path) -> None:
    """By its content, whatever it is called: phones also send HEIC named .jpg."""
    (tmp_path / name).write_bytes(heic())
    image = read_image(tmp_path / name)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    for place, colour in (((8, 8), (20, 90, 220)), ((56, 40), (200, 30, 60))):
        assert all(abs(a - b) < 12 for a, b in zip(image.getpixel(place), colour, strict=True))
    assert Sample("1", "", heic(), "").load_image().size == (64, 48)


@pytest.mark.skipif(not HAS_HEIF, reason="pillow-heif is an optional extra")
def test_damaged_and_large_ones(tmp_path: Path) -> None:
    (tmp_path / "cut.heic").write_bytes(heic()[:-200])
    with pytest.raises(VlmpruneError, match=r"(cannot be read as|not) an image"):
        read_image(tmp_path / "cut.heic")
    (tmp_path / "large.heic").write_bytes(heic((640, 480)))
    from vlmprune.inputs.images import OWN_FORMATS

    with pytest.raises(VlmpruneError, match="more than 1,000 pixels"):
        decoded(tmp_path / "large.heic", "large.heic", most_pixels=1000, formats=OWN_FORMATS)


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_without_the_package_it_is_one_sentence(brand: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    path = tmp_path / "photo.heic"
    path.write_bytes(BOXES[brand])
    with pytest.raises(VlmpruneError) as caught:
        read_image(path)
    remedy = "which the package pillow-heif reads; install vlmprune[heic], or save the image as JPEG"
    assert str(caught.value) == f"{str(path)!r} is a HEIC image, {remedy}"
    with pytest.raises(VlmpruneError, match="the image of 1' is a HEIC image"):
        Sample("1", "", BOXES[brand], "").load_image()


@pytest.mark.parametrize("brand", [b"avif", b"isom"])
def test_others_of_its_family_are_no_images_here(brand: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(BOXES[brand])
    with pytest.raises(VlmpruneError, match="not an image of a format that is read here"):
        read_image(tmp_path / "a.heic")


def test_what_strangers_upload_is_not_given_to_its_decoder() -> None:
    with pytest.raises(VlmpruneError, match="not an image of a format that is read here"):
        decoded(io.BytesIO(BOXES[b"heic"]), "upload")


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    """Such a file is one of the images of a folder also where it cannot be read: it must not be lost in silence."""
    for name in ("a.HEIC", "b.heif", "c.png"):
        (tmp_path / name).write_bytes(BOXES[b"heic"])
    assert [one.name for one in image_paths(tmp_path)] == ["a.HEIC", "b.heif", "c.png"]
    assert {".heic", ".heif"} <= suffixes()
