"""A run's record on disk: append-only lines that survive `kill -9`, shards of several processes, one summary.

run.json              what the run is; resuming something else is refused
samples.jsonl         one line a question, in the data's order once the run is complete
samples-1-of-4.jsonl  what process 1 of 4 has so far; merged into samples.jsonl by whoever completes the run
summary.json          the numbers, with their provenance
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError

WHOLE = "samples.jsonl"


class Record:
    """Opens (or goes on with) the record in `folder`.

    Args:
        identity: what must be the same for a run to be resumed, JSON-serialisable.
        shard: this process and how many there are. option: what names the folder on the command line.
    Raises:
        VlmpruneError: the folder holds another run.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], shard: tuple[int, int] = (0, 1), *, option: str = "--out"
    ) -> None:
        self.folder, self.option = folder, option
        rank, world = shard
        self.path = folder / (WHOLE if world == 1 else f"samples-{rank}-of-{world}.jsonl")
        folder.mkdir(parents=True, exist_ok=True)
        with self.locked():
            self._check(json.loads(json.dumps(identity)))
            repair(self.path)
            # An image that could not be opened may have been mended since.
            self.done = {name: line for name, line in self.lines().items() if "error" not in line}

    def _check(self, identity: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        if not path.exists():
            write_json(path, identity)
            return
        try:
            before = json.loads(path.read_text())
        except ValueError:
            before = {}
        for name in sorted({*identity, *before}):
            if identity.get(name) != before.get(name):
                raise VlmpruneError(
                    f"The folder {str(self.folder)!r} holds a run with {name}={before.get(name)!r}, not "
                    f"{identity.get(name)!r}; give another {self.option} or remove that folder."
                )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time looks at the folder's files as a whole."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def lines(self) -> dict[str, dict[str, Any]]:
        """What all processes have so far, one line a question by its id; damaged lines are left out."""
        out: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("samples*.jsonl")):
            for line in good_lines(path):
                if line["id"] not in out or "error" in out[line["id"]]:
                    out[line["id"]] = line
        return out

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines in one write; a question that is there already is left out."""
        new = [line for line in lines if line["id"] not in self.done]
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in new)
        # O_APPEND and one call: what is killed in the middle leaves one torn line, the last.
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            data = text.encode()
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)
        self.done.update({str(line["id"]): dict(line) for line in new})

    def complete(self, ids: Sequence[str]) -> list[dict[str, Any]] | None:
        """All lines in the order of `ids`, merged into one file, or None while some are missing.

        Call with the folder `locked()`. Lines of questions beyond `ids` (an earlier, larger --limit) stay behind them.
        """
        by_id = self.lines()
        if any(name not in by_id for name in ids):
            return None
        wanted = set(ids)
        ordered = [by_id[name] for name in ids]
        beyond = [line for name, line in by_id.items() if name not in wanted]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered + beyond)
        whole = self.folder / WHOLE
        if not whole.exists() or whole.read_text() != text:
            write_text(whole, text)
        for path in self.folder.glob("samples-*-of-*.jsonl"):
            path.unlink()
        return ordered


def good_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record that are whole."""
    if path.exists():
        for raw in path.read_bytes().split(b"\n"):
            line = _parsed(raw)
            if line is not None:
                yield line


def repair(path: Path) -> None:
    """Cut a torn last line off, so that the next one starts on its own."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("id"), str) else None


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader, or a crash, sees the old one or the new one."""
    other = path.with_name(f".{path.name}.{os.getpid()}")
    other.write_text(text)
    os.replace(other, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object with one field a line, so that long lists stay on theirs; replaced at once."""
    fields = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}" for k, v in value.items()
    )
    write_text(path, f"{{\n{fields}\n}}\n")
