"""A run's record on disk: append-only lines that survive `kill -9`, shards of several processes, one summary.

run.json              what the run is; resuming something else is refused
samples.jsonl         one line a question, in the data's order once the run is complete
samples-1-of-4.jsonl  what process 1 of 4 has so far; merged into samples.jsonl by whoever completes the run
summary.json          the numbers, with their provenance
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError
from vlmprune.harness.record import append_lines, good_lines, repair, write_text

WHOLE = "samples.jsonl"
# Fields of run.json that came later, with what held before; one that is not here and not in a file may be anything.
LATER = {"share": False, "boxes": "auto", "reading": "official", "dataset": None, "config": None, "split": None}
MAY_DIFFER = {"scorers"}  # answers are scored again


class Record:
    """Opens (or goes on with) the record in `folder`.

    Args:
        identity: what must be the same for a run to be resumed, JSON-serialisable.
        shard: this process and how many there are. option: what names the folder on the command line. needs: what a
            line without an error must have; others are taken as damaged.
    Raises:
        VlmpruneError: the folder holds another run, or cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        shard: tuple[int, int] = (0, 1),
        *,
        option: str = "--out",
        needs: Set[str] = frozenset(),
    ) -> None:
        self.folder, self.option, self.needs = folder, option, needs
        rank, world = shard
        self.path = folder / (WHOLE if world == 1 else f"samples-{rank}-of-{world}.jsonl")
        folder_at(folder, option)
        with self.locked():
            self.before = self._check(json.loads(json.dumps(identity)))
            repair(self.path)
            # An image that could not be opened may have been mended since.
            self.done = {name: line for name, line in self.lines().items() if "error" not in line}

    def _check(self, identity: dict[str, Any]) -> dict[str, Any]:
        """What the folder says its run is, which must be this one; a field that came later has its first value."""
        path = self.folder / "run.json"
        if not path.exists():
            write_json(path, identity)
            return identity
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict) or not before:
            raise VlmpruneError(
                f"{str(path)!r} does not say what its run is; give another {self.option} or remove that folder."
            )
        for name in sorted({*identity, *before} - MAY_DIFFER):
            found = before.get(name, LATER.get(name, identity.get(name)))
            if identity.get(name) != found:
                raise VlmpruneError(
                    f"The folder {str(self.folder)!r} holds a run with {name}={found!r}, not "
                    f"{identity.get(name)!r}; give another {self.option} or remove that folder."
                )
        return before

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
                if not ("error" in line or self.needs <= line.keys()):
                    continue
                if line["id"] not in out or "error" in out[line["id"]]:
                    out[line["id"]] = line
        return out

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add lines in one write; a question that is there already is left out."""
        new = [line for line in lines if line["id"] not in self.done]
        append_lines(self.path, new)
        self.done.update({str(line["id"]): dict(line) for line in new})

    def complete(
        self, ids: Sequence[str], mend: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    ) -> list[dict[str, Any]] | None:
        """All lines in the order of `ids`, merged into one file, or None while some are missing.

        `mend` brings a line up to date. Call with the folder `locked()`. Lines of questions beyond `ids` (an earlier,
        larger --limit) stay behind them.
        """
        by_id = self.lines()
        if any(name not in by_id for name in ids):
            return None
        wanted = set(ids)
        ordered = [by_id[name] if mend is None else mend(by_id[name]) for name in ids]
        beyond = [line for name, line in by_id.items() if name not in wanted]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ordered + beyond)
        whole = self.folder / WHOLE
        if not whole.exists() or whole.read_text(encoding="utf-8") != text:
            write_text(whole, text)
        for path in self.folder.glob("samples-*-of-*.jsonl"):
            path.unlink()
        return ordered


def folder_at(path: Path, option: str = "--out") -> None:
    """Make a folder of records.

    Raises:
        VlmpruneError: a file stands there, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VlmpruneError(
            f"{str(path)!r} cannot be a folder of records ({error.strerror}); give another {option}."
        ) from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object with one field a line, so that long lists stay on theirs; replaced at once."""
    fields = ",\n".join(
        f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False, allow_nan=False)}" for k, v in value.items()
    )
    write_text(path, f"{{\n{fields}\n}}\n")
