from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmprune import VlmpruneError

from .conftest import need
from .pictures import bomb, turned


@pytest.fixture(autouse=True)
def _gradio() -> None:
    need("gradio")


def test_a_picture_is_turned_as_its_tag_says(tmp_path: Path) -> None:
    from vlmprune.apps.demo.upload import read

    upright, file = turned(tmp_path)
    seen = read(file, file.name)
    assert seen.size == upright.size
    assert np.abs(np.asarray(seen, int) - np.asarray(upright, int)).mean() < 3  # JPEG


def test_large_ones_are_shrunk_and_others_are_not(tmp_path: Path) -> None:
    from vlmprune.apps.demo.upload import LARGEST_SIDE, read

    for size, seen in (((4000, 2000), (LARGEST_SIDE, LARGEST_SIDE // 2)), ((112, 90), (112, 90))):
        Image.new("RGB", size).save(tmp_path / "a.png")
        assert read(tmp_path / "a.png", "a.png").size == seen


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import resource

    from vlmprune.apps.demo.upload import MOST_PIXELS, read

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Just above the demo's limit Pillow itself would say nothing, between one and two of its own it only warns.
    for side in (int(MOST_PIXELS**0.5) + 2, 10_000, 30_000):
        with pytest.raises(VlmpruneError, match=f"'bomb.png' has more than {MOST_PIXELS:,} pixels"):
            read(bomb(tmp_path, side), "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000  # KiB


def test_what_is_no_picture_is_said(tmp_path: Path) -> None:
    from vlmprune.apps.demo.upload import LARGEST_FILE, read

    good = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(good, "PNG")
    for content, says in (
        (b"hello", "is not an image"),
        (b"", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "is not an image"),
        (good.getvalue()[:60], "cannot be read|is not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * LARGEST_FILE, "larger than 20 MB"),
    ):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(VlmpruneError, match=says) as caught:
            read(tmp_path / "x.png", "x.png")
        assert str(tmp_path) not in str(caught.value)


def test_only_uploads_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmprune.apps.demo.upload import checked, image_input

    uploads, outside = tmp_path / "uploads", tmp_path / "outside.png"
    uploads.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    Image.new("RGB", (8, 8), "red").save(outside)
    Image.new("RGB", (8, 8), "blue").save(uploads / "in.png")
    (uploads / "link.png").symlink_to(outside)

    def given(path: Path) -> Any:
        return checked(image_input().preprocess(SimpleNamespace(path=str(path), orig_name="../../a.png", url=None)))

    assert given(uploads / "in.png").getpixel((0, 0)) == (0, 0, 255)
    for path in (outside, uploads / ".." / "outside.png", uploads / "link.png"):
        with pytest.raises(VlmpruneError, match="not an upload of this page"):
            given(path)
    with pytest.raises(VlmpruneError, match="no image"):
        checked(image_input().preprocess(None))


def test_the_bomb_of_these_tests_is_one(tmp_path: Path) -> None:
    file = bomb(tmp_path, 300)
    assert Image.open(file).size == (300, 300)
    Image.open(file).load()
    assert struct.unpack(">I", file.read_bytes()[16:20]) == (300,)
    assert zlib.crc32(b"IHDR" + file.read_bytes()[16:29]) == struct.unpack(">I", file.read_bytes()[29:33])[0]
