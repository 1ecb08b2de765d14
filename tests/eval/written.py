"""Files for tests of the tasks: images, clips, JSON, JSONL and parquet."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def jpeg(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def gif(colours: str = "red green blue white", size: tuple[int, int] = (40, 30)) -> bytes:
    """A clip of one frame a colour, two a second."""
    file = BytesIO()
    first, *others = (Image.new("RGB", size, colour) for colour in colours.split())
    first.save(file, "GIF", save_all=True, append_images=others, duration=500)
    return file.getvalue()


def put(root: Path, name: str, content: Any) -> None:
    """Write a file: bytes and text as they are, all else as JSON."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(path: Path, table: dict[str, list[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(table), path)
