"""Where a task's files lie: in its folder, in a folder below that an archive was unpacked to, or inside an archive."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmprune.errors import VlmpruneError

from .archives import ARCHIVES, ArchivePlace, inside
from .readers import BadRow, read_json

DEPTH = 3  # how far below a task's folder its files are looked for


Place = Path | ArchivePlace


@dataclass(frozen=True)
class Folder:
    """A task's folder, or the one archive that holds it. `files`: what belongs there and where it comes from."""

    path: Path
    task: str
    files: Mapping[str, str] = field(default_factory=dict)
    on_hub: bool = False

    def file(self, name: str) -> Place:
        """A file of the task.

        Raises:
            VlmpruneError: it is not there, or at several places.
        """
        return self._found(name, "file")

    def folder(self, name: str) -> Place:
        """A folder of images.

        Raises:
            VlmpruneError: it is not there, or at several places.
        """
        return self._found(name, "folder")

    def json(self, name: str, kind: type, what: str) -> Any:
        """The value of a JSON file, of the type it must have.

        Raises:
            VlmpruneError: it is not there. BadRow: as `read_json`, or it is of another type.
        """
        found = read_json(self.file(name))
        if not isinstance(found, kind):
            raise BadRow(f"{name} is of type {type(found).__name__}, not {what}")
        return found

    def first(self, *names: str) -> str | None:
        """The first of several names that is there."""
        return next((name for name in names if self._places(name, "file")), None)

    def below(self, *endings: str) -> list[Path]:
        """All files with such an ending, at any depth, in order, without hidden folders (`.cache` of downloads)."""
        if self.path.is_file():
            return [self.path] if self.path.name.lower().endswith(endings) else []
        return sorted(at / one for at, names in self.walk() for one in names if one.lower().endswith(endings))

    def walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Every folder with the names of its files, through links but in no circle; nothing that is hidden."""
        seen = set()
        for at, folders, names in os.walk(self.path, followlinks=True):
            seen.add(os.path.realpath(at))
            folders[:] = [one for one in folders if one[0] != "." and os.path.realpath(Path(at, one)) not in seen]
            yield Path(at), [one for one in names if one[0] != "."]

    def _hidden(self, path: Path) -> bool:
        return any(part.startswith(".") for part in path.relative_to(self.path).parts)

    def _found(self, name: str, kind: str) -> Place:
        places = self._places(name, kind)
        if not places:
            raise self.missing(name, kind)
        if len(places) > 1:
            listed = ", ".join(repr(str(one)) for one in places[:3])
            raise VlmpruneError(f"The task {self.task!r} finds {name!r} more than once ({listed}); leave one of them.")
        return places[0]

    def _places(self, name: str, kind: str) -> list[Place]:
        """Where something of this name is: in the folder, else nearest below it, else in archives."""
        wanted = name.rstrip("/")
        if self.path.is_dir():
            for depth in range(DEPTH + 1):
                found = [
                    one
                    for one in sorted(self.path.glob("*/" * depth + wanted))
                    if not self._hidden(one) and (one.is_file() if kind == "file" else one.is_dir())
                ]
                if found:
                    return list(found)
        return [place for archive in self.below(*ARCHIVES) for place in inside(archive, wanted, kind)]

    def missing(self, name: str, kind: str) -> VlmpruneError:
        """What to say where a file or folder is not there."""
        source = self.files.get(name) or self.files.get(f"{name}/")
        other = ", or pass --hub to read the data from the Hugging Face Hub" if self.on_hub else ""
        return VlmpruneError(
            f"The task {self.task!r} finds no {kind} {str(self.path / name)!r}; put it there"
            f"{f' ({source})' if source else ''}{other}."
        )
