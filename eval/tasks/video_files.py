"""Videos of benchmarks: where they lie or what draws them, and their frames.

They are found by their names wherever they were unpacked to below a task's folder, or inside its archives: benchmarks
offer them in parts of some 20 GB, whose folders differ between sites. Out of an archive one is copied to a temporary
file while it is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from vlmprune.errors import VlmpruneError

from .archives import ARCHIVES, ArchivePlace
from .files import Folder, Place
from .readers import BadRow

PICTURES = (".jpg", ".jpeg", ".png")  # of a folder of frames


@dataclass(frozen=True)
class VideoFile:
    """A video, or a part of one: `between` two seconds. `fps`: of a folder of numbered frames, how many a second."""

    place: Place
    between: tuple[float, float] | None = None
    fps: float = 3.0

    def read(self, frames: int | None) -> Any:
        """The clip with at most that many evenly spaced frames.

        Raises:
            VlmpruneError: it is missing or damaged, or beyond the limits.
        """
        from vlmprune.inputs.video import read_clip

        if self.place.is_dir():
            return read_clip(self._numbered(), frames=frames, fps=self.fps)
        if isinstance(self.place, Path):
            return read_clip(self.place, frames=frames, between=self.between)
        with tempfile.NamedTemporaryFile(suffix=Path(self.place.name).suffix) as copy, self.place.open() as packed:
            while part := packed.read(1 << 24):
                copy.write(part)
            copy.flush()
            return read_clip(Path(copy.name), frames=frames, between=self.between)

    def _numbered(self) -> list[Any]:
        """The frames of a folder, those between the two seconds; the first one is number 1."""
        from vlmprune.inputs.images import decoded, read_image

        paths = sorted((one for one in self.place.glob("*") if one.name.lower().endswith(PICTURES)), key=str)
        if self.between is not None:
            start, end = (round(second * self.fps) for second in self.between)
            paths = paths[max(0, start - 1) : max(end, start, 1)] or paths[-1:]
        if not paths:
            raise VlmpruneError(f"there is no frame in {str(self.place)!r}; check the folder")
        return [
            read_image(one) if isinstance(one, Path) else decoded(BytesIO(one.read_bytes()), str(one)) for one in paths
        ]


@dataclass(frozen=True)
class DrawnVideo:
    """A video that no file holds: what draws its frames, so many a second."""

    draw: Callable[[], list[Any]]
    fps: float = 2.0

    def read(self, frames: int | None) -> Any:
        """The clip with at most that many evenly spaced frames."""
        from vlmprune.inputs.video import read_clip

        return read_clip(self.draw(), frames=frames, fps=self.fps)


class Videos:
    """The videos below a task's folder and in its archives."""

    def __init__(self, folder: Folder) -> None:
        self.place, at = folder, folder.path
        beside = at.is_file() and not at.name.lower().endswith(ARCHIVES)  # a table, beside which they lie
        self.folder = replace(folder, path=at.parent) if beside else folder

    def find(self, *names: str) -> Place:
        """The first of these videos that is there.

        Args:
            names: a file's or a folder's name, with folders in front where they are needed to tell it; a file may have
                any ending of a video's.

        Raises:
            VlmpruneError: there is no video at all. BadRow: none of these is there.
        """
        if not self._known:
            raise self.folder.missing("*.mp4", "file")
        for name in names:
            wanted = PurePosixPath(name.replace("\\", "/")).parts
            wanted = tuple(part for part in wanted if part not in (".", "..", "/"))
            for place, parts in self._known.get(_key(wanted[-1]), ()) if wanted else ():
                if parts[-len(wanted) : -1] == wanted[:-1]:
                    return place
        raise BadRow(f"there is no video {names[0]!r}")

    @cached_property
    def _known(self) -> dict[str, list[tuple[Place, tuple[str, ...]]]]:
        """By name without ending: everything that may be a video, unpacked ones first, then the nearest."""
        found: dict[str, list[tuple[Place, tuple[str, ...]]]] = {}
        nearest = sorted(self._all(), key=lambda one: (isinstance(one[0], ArchivePlace), len(one[1]), one[1]))
        for place, parts in nearest:
            found.setdefault(_key(parts[-1]), []).append((place, parts))
        return found

    def _all(self) -> Iterator[tuple[Place, tuple[str, ...]]]:
        for at, names in self.folder.walk():
            here = at.relative_to(self.folder.path).parts
            if here and any(name.lower().endswith(PICTURES) for name in names):
                yield at, here
            for name in names:
                if _is_video(name):
                    yield at / name, (*here, name)
        for archive in self.folder.below(*ARCHIVES):
            framed = set()
            for place in ArchivePlace(archive, PurePosixPath()).glob("**/*"):
                if _is_video(place.name):
                    yield place, place.inner.parts
                elif place.name.lower().endswith(PICTURES) and place.inner.parent not in framed:
                    framed.add(place.inner.parent)
                    yield place.parent, place.inner.parent.parts


def _is_video(name: str) -> bool:
    from vlmprune.inputs.images import VIDEOS

    return PurePosixPath(name).suffix.lower() in VIDEOS | {".gif"}


def _key(name: str) -> str:
    return PurePosixPath(name).stem if _is_video(name) else name
