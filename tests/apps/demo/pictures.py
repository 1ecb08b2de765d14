"""Files that a page should survive."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image


def bomb(folder: Path, side: int) -> Path:
    """A PNG of side x side white pixels, one bit each, whose file is tiny."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((side + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file = folder / "bomb.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
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
