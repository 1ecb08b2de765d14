"""Images of every mode become what a person sees, the same wherever one enters."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlmprune
from eval.tasks.base import Sample
from vlmprune import VlmpruneError
from vlmprune.captioner.pipeline import checked_image
from vlmprune.inputs.images import as_rgb, decoded, read_image
from vlmprune.integrations.ray import read
from vlmprune.serving.chat import Limits, read_chat

# 0 to 65,535 in 256 steps from left to right, four rows of it; in 8 bits the steps are 0, 1, ..., 255.
RAMP = np.tile(np.arange(256) * 257, (4, 1))
EIGHT = np.tile(np.arange(256), (4, 1))


def saved(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    """Through a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def pgm(values: np.ndarray, most: int = 65535) -> Image.Image:
    height, width = values.shape
    return Image.open(io.BytesIO(b"P5 %d %d %d\n" % (width, height, most) + values.astype(">u2").tobytes()))


def array(kind: str) -> Image.Image:
    return Image.fromarray(RAMP.astype(kind))


GRADIENTS: dict[str, Callable[[], Image.Image]] = {
    "16-bit PGM": lambda: pgm(RAMP),
    "16-bit PNG": lambda: saved(array("u2"), "PNG"),
    "16-bit TIFF": lambda: saved(array("u2"), "TIFF"),
    "float TIFF": lambda: saved(array("f4"), "TIFF"),
    "32-bit TIFF": lambda: saved(array("i4"), "TIFF"),
    "I;16": lambda: array("u2"),
    "I;16B": lambda: array(">u2"),
    "I": lambda: array("i4"),
    "I, large and below zero": lambda: Image.fromarray((RAMP.astype("i8") * 60_000 - 2**31).astype("i4")),
    "F": lambda: array("f4"),
    "F, 0 to 1": lambda: Image.fromarray((RAMP / 65535).astype("f4")),
    "F, around 0": lambda: Image.fromarray((RAMP / 65535 - 0.5).astype("f4")),
    "I, 0 to 255": lambda: Image.fromarray(EIGHT.astype("i4")),
    "L": lambda: Image.fromarray(EIGHT.astype("u1")),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_of_any_depth_is_the_gradient_in_eight_bits(name: str) -> None:
    seen = as_rgb(GRADIENTS[name]())
    assert seen.mode == "RGB"
    assert np.abs(np.asarray(seen, int) - EIGHT[..., None]).max() <= 1
    assert np.asarray(seen).mean() == pytest.approx(127.5, abs=0.5)


def tiff(values: np.ndarray, packed: bytes, bits: int, *, white_is_zero: bool = False) -> Image.Image:
    """An uncompressed grey TIFF of unsigned numbers, from the tags of TIFF 6.0."""
    height, width = values.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1),
               (273, 4, 8), (277, 3, 1), (278, 3, height), (279, 4, len(packed)), (339, 3, 1)]  # fmt: skip
    written = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(packed))
    return Image.open(io.BytesIO(head + packed + struct.pack("<H", len(entries)) + written + bytes(4)))


def test_tiff_says_what_its_numbers_mean() -> None:
    """Twelve bits end at 4,095, 32 unsigned ones do not turn negative, and white may be 0."""
    values = np.tile(np.arange(256) * 4095 // 255, (4, 1))
    pairs = values.reshape(-1, 2)
    first, second = pairs[:, 0], pairs[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype("u1").tobytes()
    large = np.tile(np.arange(256, dtype="u8") * 0x01010101, (4, 1))
    sixteen, eight = RAMP.astype("<u2").tobytes(), EIGHT.astype("u1").tobytes()
    for image, wanted in (
        (tiff(values, packed, 12), EIGHT),
        (tiff(large, large.astype("<u4").tobytes(), 32), EIGHT),
        (tiff(RAMP, sixteen, 16), EIGHT),
        (tiff(RAMP, sixteen, 16, white_is_zero=True), 255 - EIGHT),
        (tiff(EIGHT, eight, 8, white_is_zero=True), 255 - EIGHT),
    ):
        assert np.abs(np.asarray(as_rgb(image), int) - wanted[..., None]).max() <= 1, image


@pytest.mark.parametrize("make", [lambda v: pgm(v), lambda v: saved(Image.fromarray(v.astype("u2")), "PNG")])
def test_sixteen_bits_have_a_range_of_their_own(make: Callable[[np.ndarray], Image.Image]) -> None:
    """A dark picture stays dark: its brightest value is no white."""
    assert np.abs(np.asarray(as_rgb(make(RAMP // 4)), float) - (EIGHT / 4)[..., None]).max() <= 1


def test_a_pgm_of_ten_bits_is_scaled_by_its_own_maximum() -> None:
    assert np.asarray(as_rgb(pgm(np.tile(np.arange(1024), (2, 1)), most=1023))).mean() == pytest.approx(127.5, abs=0.5)


def test_numbers_without_a_range() -> None:
    for value, grey in ((0, 0), (7.5, 128), (-3.0, 128)):
        assert as_rgb(Image.new("F", (2, 2), value)).getpixel((0, 0)) == (grey,) * 3
    for value in (0, 200):
        assert as_rgb(Image.new("I", (2, 2), value)).getpixel((0, 0)) == (value,) * 3
    for bad in (np.nan, np.inf):
        values = RAMP.astype("f4")
        values[0, 0] = bad
        with pytest.raises(VlmpruneError, match="not finite"):
            as_rgb(Image.fromarray(values))


def test_transparency_lies_on_white() -> None:
    """Left half red and opaque, right half black and transparent; the last column red, half of it."""
    rgba = np.zeros((4, 5, 4), "u1")
    rgba[:, :2] = rgba[:, 4:] = (200, 0, 0, 255)
    rgba[:, 4:, 3] = 128
    half = round(200 * 128 / 255 + 255 * 127 / 255), *(round(255 * 127 / 255),) * 2
    image = Image.fromarray(rgba)
    for kept in (image, saved(image, "PNG"), saved(image, "WEBP", lossless=True), image.convert("RGBa")):
        seen = as_rgb(kept)
        assert seen.getpixel((0, 0)) == (200, 0, 0)
        assert seen.getpixel((2, 0)) == (255, 255, 255)
        assert np.abs(np.subtract(seen.getpixel((4, 0)), half)).max() <= 2
    grey = Image.fromarray(np.array([[[90, 255], [0, 0]]], "u1"), "LA")
    for kept in (grey, saved(grey, "PNG"), grey.convert("La")):
        assert [as_rgb(kept).getpixel((x, 0)) for x in (0, 1)] == [(90,) * 3, (255,) * 3]


def test_palettes() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert [as_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    for kind in ("PNG", "GIF"):
        kept = saved(image, kind, transparency=1)
        assert [as_rgb(kept).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    assert [as_rgb(image.convert("PA")).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]


def test_a_transparent_grey_of_sixteen_bits() -> None:
    kept = saved(array("u2"), "PNG", transparency=0)
    assert as_rgb(kept).getpixel((0, 0)) == (255, 255, 255)
    assert as_rgb(kept).getpixel((9, 0)) == (9, 9, 9)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "LAB", "1"])
def test_other_colours(mode: str) -> None:
    colours = {"1": [(0, 0, 0), (255, 255, 255)], "LAB": [(119, 119, 119), (255, 255, 255)]}
    wanted = colours.get(mode, [(250, 10, 20), (30, 200, 90), (128, 128, 128)])
    if mode == "LAB":  # lightness 50 of 100 is 119 in sRGB, colours are offset by 128
        image = Image.new("LAB", (2, 1), (128, 128, 128))
        image.putpixel((1, 0), (255, 128, 128))
    else:
        rgb = Image.new("RGB", (len(wanted), 1))
        rgb.putdata(wanted)
        image = rgb.convert(mode)
    for x, colour in enumerate(wanted):
        assert np.abs(np.subtract(as_rgb(image).getpixel((x, 0)), colour)).max() <= 4


def test_a_phone_photo_stands_upright_once() -> None:
    """All eight orientations of the EXIF standard: where the stored top left corner goes."""
    upright = np.zeros((20, 30, 3), "u1")
    upright[:10, :15] = 255  # the upper left quarter is white
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: upright.swapaxes(0, 1)[::-1], 7: upright.swapaxes(0, 1)[::-1, ::-1], 8: upright.swapaxes(0, 1)[:, ::-1],
    }  # fmt: skip
    for tag, pixels in stored.items():
        exif = Image.Exif()
        exif[274] = tag
        kept = saved(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif)
        assert np.array_equal(np.asarray(as_rgb(kept)), upright), tag
        assert np.array_equal(np.asarray(as_rgb(as_rgb(kept))), upright), tag


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", [struct.pack(">IH", 8, 9), struct.pack(">I", 2**32 - 1), b"", b"\xff" * 40])
def test_a_damaged_exif_block_is_no_reason_to_refuse(block: bytes) -> None:
    kept = saved(Image.new("RGB", (8, 6), "red"), "JPEG", exif=b"Exif\0\0MM\0\x2a" + block)
    assert as_rgb(kept).size == (8, 6)


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_a_cut_file_is_one_sentence_also_when_it_was_opened_before() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), "u1")).save(file, "JPEG")
    cut = file.getvalue()[:2000]
    for way in (lambda: as_rgb(Image.open(io.BytesIO(cut))), lambda: decoded(io.BytesIO(cut), "x")):
        with pytest.raises(VlmpruneError, match="cannot be read as an image"):
            way()


def test_a_picture_is_left_as_it_was() -> None:
    image = saved(array("u2"), "PNG")
    as_rgb(image)
    assert image.mode == "I;16"
    mine = Image.new("RGB", (4, 4))
    as_rgb(mine).putpixel((0, 0), (1, 2, 3))
    assert mine.getpixel((0, 0)) == (0, 0, 0)


def sent(url: str) -> Image.Image:
    """What the proxy unpacks of a chat request with this image."""
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    (message,) = read_chat(json.dumps(body).encode(), Limits()).talk(Limits().pixels)
    return message["content"][0]["image"]


# -- every way in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["file", "bytes", "eval", "ray path", "ray array", "captioner", "data URL"])
def test_every_way_in_sees_the_same(tmp_path: Path, way: str) -> None:
    file = io.BytesIO()
    array("u2").save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    seen = {
        "file": lambda: read_image(tmp_path / "a.png"),
        "bytes": lambda: decoded(io.BytesIO(file.getvalue()), "x"),
        "eval": lambda: Sample("1", "", lambda: array("u2"), "").load_image(),
        "ray path": lambda: read(str(tmp_path / "a.png")),
        "ray array": lambda: read(RAMP.astype("u2")),
        "captioner": lambda: checked_image(array("u2")),
        "data URL": lambda: sent(url),
    }[way]()
    assert np.array_equal(np.asarray(seen), np.repeat(EIGHT[..., None], 3, axis=2))


def test_ask_and_its_overlay_see_a_turned_grey_photo_as_it_looks() -> None:
    """Pixels the model gets, and the overlay's size, from a 16-bit picture that its tag turns."""
    large, _, processor = vlmprune.load_tiny()
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    values = np.random.default_rng(0).integers(0, 65536, (40, 60))
    stored = saved(Image.fromarray(values.astype("u2")), "PNG", exif=exif)
    eight = np.rint(np.rot90(values, -1) / 257).astype("u1")
    plain = Image.fromarray(np.repeat(eight[..., None], 3, axis=2))
    from vlmprune.inputs.chat import prepare

    given, wanted = (prepare(processor, image, "What colour is the star?")["pixel_values"] for image in (stored, plain))
    assert torch.equal(given, wanted)
    with vlmprune.wrap(large, "fastv", keep=0.25, processor=processor) as pruned:
        report = pruned.ask(stored, "What colour is the star?", max_new_tokens=1).report
    assert report.overlay(stored).size == plain.size
    assert np.array_equal(np.asarray(report.overlay(stored)), np.asarray(report.overlay(plain)))
