"""Files inside zip and tar archives, read where they lie: nothing is unpacked into a folder.

A tar that is compressed is unpacked once into a temporary file, which has no name, since it can only be read in order.
Links, devices and what macOS adds are left out, and no path leads out of an archive.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any

from vlmprune.errors import VlmpruneError

from .readers import BadRow

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ARCHIVES = (".zip", *TARS)
LARGEST = 1 << 33  # bytes of one file in an archive: the largest official one has some 300 MB
# A tar of images hardly shrinks; one that grows so many times, beyond so many bytes, is made to fill a disk.
MOST_TIMES, HARMLESS = 100, 1 << 30
CHUNK = 1 << 20
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, ValueError, OSError)


@dataclass(frozen=True)
class ArchivePlace:
    """A file or folder inside an archive, read as a `Path` is; as an image it is called for its bytes."""

    archive: Path
    inner: PurePosixPath

    def __truediv__(self, other: str) -> ArchivePlace:
        return ArchivePlace(self.archive, _normal(self.inner / other))

    def __str__(self) -> str:
        return f"{self.archive}/{self.inner}"

    def __call__(self) -> bytes:
        return self.read_bytes()

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def stem(self) -> str:
        return self.inner.stem

    @property
    def parent(self) -> ArchivePlace:
        return ArchivePlace(self.archive, self.inner.parent)

    def is_file(self) -> bool:
        return str(self.inner) in names_in(self.archive)[0]

    def is_dir(self) -> bool:
        return str(self.inner) in names_in(self.archive)[1]

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, opened for reading bytes.

        Raises:
            VlmpruneError: it is not there, encrypted, damaged, or too large.
        """
        member = names_in(self.archive)[0].get(str(self.inner))
        if member is None:
            raise VlmpruneError(f"there is no file {str(self.inner)!r} in {str(self.archive)!r}; check the archive")
        size = member.size if isinstance(member, tarfile.TarInfo) else member.file_size
        if size > LARGEST:
            raise VlmpruneError(f"{str(self)!r} would unpack to {size:,} bytes; check the archive")
        opened: Any = _opened(self.archive, os.getpid())
        try:
            file: Any = opened.extractfile(member) if isinstance(opened, tarfile.TarFile) else opened.open(member)
        except (*DAMAGED, RuntimeError, NotImplementedError) as error:  # encrypted, or compressed unusually
            raise BadRow(f"{str(self)!r} cannot be unpacked ({error}); unpack the archive yourself") from None
        whole: IO[bytes] = file
        return whole

    def read_bytes(self) -> bytes:
        """The file's content.

        Raises:
            VlmpruneError: as `open`.
        """
        with self.open() as file:
            try:
                return file.read()
            except Exception as error:  # whatever damaged data makes the decompressors raise
                raise BadRow(f"{str(self)!r} cannot be unpacked ({error}); fetch the archive again") from None

    def glob(self, pattern: str) -> Iterator[ArchivePlace]:
        """The files below whose paths match, in order; `**/` stands for any folders."""
        wanted = re.compile(fnmatch.translate(pattern.replace("**/", "*")))
        for name in sorted(names_in(self.archive)[0]):
            path = PurePosixPath(name)
            if path.is_relative_to(self.inner) and wanted.match(str(path.relative_to(self.inner))):
                yield ArchivePlace(self.archive, path)


def inside(archive: Path, wanted: str, kind: str) -> list[ArchivePlace]:
    """Where an archive has something of this name: the places with the fewest folders above."""
    names = names_in(archive)[0 if kind == "file" else 1]
    fits = [PurePosixPath(one) for one in names if f"/{one}".endswith(f"/{wanted}")]
    least = min((len(one.parts) for one in fits), default=0)
    found = [ArchivePlace(archive, one) for one in sorted(fits) if len(one.parts) == least]
    if not found and kind == "folder" and _stem(archive) == wanted.rpartition("/")[2]:
        return [ArchivePlace(archive, PurePosixPath())]  # its images lie in it without a folder
    return found


def _stem(archive: Path) -> str:
    """The name of an archive without its ending."""
    ending = max((one for one in ARCHIVES if archive.name.lower().endswith(one)), key=len)
    return archive.name[: -len(ending)]


@cache
def _opened(archive: Path, process: int) -> zipfile.ZipFile | tarfile.TarFile:
    """An open archive; each process has its own, since the place in the file is shared by forks."""
    kind = "tar" if archive.name.lower().endswith(TARS) else "zip"
    try:
        if kind == "zip":
            return zipfile.ZipFile(archive)
        if archive.name.lower().endswith(".tar"):
            return tarfile.open(archive, "r:")
        return tarfile.open(fileobj=_unpacked(archive), mode="r:")
    except VlmpruneError:
        raise
    except DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the archive's
            raise
        raise VlmpruneError(f"{str(archive)!r} is no whole {kind} file ({error}); fetch it again") from None


def _unpacked(archive: Path) -> IO[bytes]:
    """The tar inside a compressed file, in a temporary file."""
    import bz2
    import gzip
    import lzma

    name = archive.name.lower()
    opener: Any = gzip.open if name.endswith("gz") else bz2.open if name.endswith("bz2") else lzma.open
    most = max(HARMLESS, MOST_TIMES * archive.stat().st_size)
    whole = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the archive is open
    with opener(archive, "rb") as packed:
        while part := packed.read(CHUNK):
            if whole.tell() + len(part) > most:
                raise VlmpruneError(
                    f"{str(archive)!r} unpacks to more than {most:,} bytes, {MOST_TIMES} times its size or more; check "
                    "it and unpack it yourself"
                )
            whole.write(part)
    whole.seek(0)
    return whole


@cache
def names_in(archive: Path) -> tuple[dict[str, Any], set[str]]:
    """The files and folders of an archive; what macOS adds is left out.

    Raises:
        VlmpruneError: it is damaged.
    """
    files: dict[str, Any] = {}
    folders = {"."}
    for given, member, kind in _members(archive):
        path = _normal(PurePosixPath(given.replace("\\", "/")))
        if kind == "folder":
            folders.add(str(path))
        elif kind == "file" and path.parts and "__MACOSX" not in path.parts and not path.name.startswith("._"):
            files[str(path)] = member
        if kind != "other":
            folders |= {str(one) for one in path.parents}
    return files, folders


def _members(archive: Path) -> Iterator[tuple[str, Any, str]]:
    """Name, member and kind of everything in an archive; links and devices are "other"."""
    opened = _opened(archive, os.getpid())
    if isinstance(opened, zipfile.ZipFile):
        for member in opened.infolist():
            yield member.filename, member, "folder" if member.is_dir() else "file"
        return
    try:
        entries = opened.getmembers()
    except DAMAGED as error:
        raise VlmpruneError(f"{str(archive)!r} is no whole tar file ({error}); fetch it again") from None
    for entry in entries:
        # A sparse file may be as large as its header says, and hold nothing.
        kind = "folder" if entry.isdir() else "file" if entry.isreg() and not entry.issparse() else "other"
        yield entry.name, entry, kind


def _normal(path: PurePosixPath) -> PurePosixPath:
    """Without ".." and a root: a question may name an image so."""
    return PurePosixPath(*(part for part in os.path.normpath(str(path)).split("/") if part not in ("", "..", ".")))
