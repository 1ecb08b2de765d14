"""Records on disk that survive `kill -9`: lines of JSON that are only appended, and files that are replaced at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def good_lines(path: Path, key: str = "id") -> Iterator[dict[str, Any]]:
    """The lines of a record that are whole: objects with a text under `key`."""
    if path.exists():
        for raw in path.read_bytes().split(b"\n"):
            try:
                line = json.loads(raw)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get(key), str):
                yield line


def repair(path: Path) -> None:
    """Cut a torn last line off, so that the next one starts on its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Add lines in one write."""
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    # O_APPEND and one call: what is killed in the middle leaves one torn line, the last.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = text.encode()
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader, or a crash, sees the old one or the new one."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        other.write_text(text, encoding="utf-8")
        os.replace(other, path)
    except BaseException:  # a full disk, or Ctrl-C
        other.unlink(missing_ok=True)
        raise
