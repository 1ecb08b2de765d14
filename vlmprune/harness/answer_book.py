"""The answers of a comparison on disk: one line each, appended as soon as it is there, found again by a key."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import VlmpruneError
from .record import append_lines, good_lines, repair

ANSWERS = "answers.jsonl"


class AnswerBook:
    """The answers that are there already, by key, and where new ones go: `with` holds the folder for this process.

    Args:
        folder: made where there is none; without one answers stay in memory.
    Raises:
        VlmpruneError: the folder cannot be used, or another process is at it.
    """

    def __init__(self, folder: Any = None) -> None:
        self.lines: dict[str, dict[str, Any]] = {}
        self.path, self._lock = None, None
        if folder is None:
            return
        folder = Path(folder).expanduser()
        with sentence(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / ANSWERS
            self._lock = (folder / ".lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise VlmpruneError(
                    f"another comparison writes to {str(folder)!r}; wait for it, or give another folder"
                ) from None
            repair(self.path)
            self.lines = {line["key"]: line for line in good_lines(self.path, "key") if "answer" in line}

    def __enter__(self) -> AnswerBook:
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def add(self, line: dict[str, Any]) -> None:
        """Keep an answer, on disk before anything else happens."""
        self.lines[line["key"]] = line
        if self.path is not None:
            with sentence(self.path):
                append_lines(self.path, [line])


@contextmanager
def sentence(path: Path) -> Iterator[None]:
    """An error of the file system becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise VlmpruneError(
            f"{str(path)!r} cannot be written ({error.strerror or error}); make room or give another folder"
        ) from None
