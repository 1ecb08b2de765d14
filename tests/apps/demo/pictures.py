"""Files that a page should survive."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def png(width: int, height: int, rows: Iterable[bytes] = ()) -> bytes:
    """A PNG of one bit per pixel that announces a size and holds these rows."""
    packer = zlib.compressobj(9)
    pixels = b"".join(map(packer.compress, rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def bomb(folder: Path, side: int) -> Path:
    """A PNG of side x side white pixels whose file is tiny."""
    row = b"\0" + b"\xff" * ((side + 7) // 8)
    file = folder / "bomb.png"
    file.write_bytes(png(side, side, itertools.repeat(row, side)))
    return file


def turned(folder: Path) -> tuple[Image.Image, Path]:
    """A picture, and a JPEG that holds it lying on its side with the tag that turns it up again."""
    upright = Image.new("RGB", (80, 120), "white")
    upright.paste((200, 20, 20), (0, 0, 80, 40))
    upright.paste((20, 20, 200), (0, 40, 30, 120))
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees clockwise
    file = folder / "turned.jpg"
    upright.rotate(90, expand=True).save(file, exif=exif, quality=95)
    return upright, file
