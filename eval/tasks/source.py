"""Which files a task is read from: the Hub, parquet files as `hf download` leaves them, a TSV, or official files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmprune.errors import VlmpruneError

from .files import Folder
from .readers import Bad
from .tables import Hub, TablePart, chosen, missing_shards, parts_of
from .tsv import named_tsv

if TYPE_CHECKING:
    from .base import Task


@dataclass(frozen=True)
class Source:
    """What the user says about a task's data.

    `hub`: read the Hub. `dataset`: a folder, a file, a name of VLMEvalKit's or an id of the Hub instead of the task's
    own. `config`, `split`: of parquet files and of the Hub, instead of the task's own.
    """

    hub: bool = False
    dataset: str | None = None
    config: str | None = None
    split: str | None = None


HERE = Source()  # in the task's folder


@dataclass(frozen=True)
class Found:
    """Where the data is: the first of `hub`, `parquet` and `tsv` that there is, else the official files in `folder`."""

    folder: Folder
    said: str
    hub: Hub | None = None
    parquet: tuple[TablePart, ...] = ()
    every: tuple[TablePart, ...] = ()
    tsv: Path | None = None
    bad: tuple[Bad, ...] = ()
    part: str | None = None


def found_in(task: Task, root: Path, source: Source) -> Found:
    """Where a task's data is.

    Raises:
        VlmpruneError: the data set is not there, or it is not said which of several parts is meant.
    """
    place = root / task.name
    hub = source.hub
    if source.dataset is not None:
        path = _local(task, root, source.dataset)
        hub = path is None
        place = place if path is None else path
    folder = Folder(place, task.name, task.files, task.hub is not None)
    if hub and task.hub is not None:
        asked = replace(task.hub, id=source.dataset or task.hub.id)
        if source.dataset is not None and source.dataset != task.hub.id and source.config is None:
            asked = replace(asked, config=None)  # another data set has other configurations
        asked = replace(asked, config=source.config or asked.config, split=source.split or asked.split)
        return Found(folder, f"{asked.id}, configuration {asked.config}, split {asked.split}, of the Hub", asked)
    if task.hub is not None and (files := folder.below(".parquet")):
        every = parts_of(files, place)
        parts = chosen(task.name, every, task.hub, config=source.config, split=source.split)
        said, bad = _names([part.path for part in parts], place), tuple(missing_shards(parts))
        return Found(folder, said, parquet=tuple(parts), every=tuple(every), bad=bad)
    if source.split in task.parts and source.config is None:
        return Found(folder, f"official files of {source.split}", part=source.split)
    if option := next((one for one in ("config", "split") if getattr(source, one) is not None), None):
        listed = f", or of {', '.join(task.parts)}" if task.parts else ""
        raise VlmpruneError(
            f"--{option} chooses among parquet files or on the Hub{listed}, and the task {task.name!r} finds no "
            f"parquet file in {str(place)!r}; leave it out, or name the data with --dataset."
        )
    if (tsv := _tsv(task, folder)) is not None:
        if not task.reads_tsv():
            raise VlmpruneError(
                f"The task {task.name!r} reads no TSV, since VLMEvalKit has none of it, and {tsv.name!r} is one; give "
                f"{' and '.join(task.files)}{', or pass --hub' if task.hub else ''}."
            )
        return Found(folder, tsv.name, tsv=tsv)
    return Found(folder, "official files")


def _local(task: Task, root: Path, dataset: str) -> Path | None:
    """The folder or file of a data set that is not on the Hub."""
    for path in (Path(dataset).expanduser(), root / dataset, root / task.name / dataset):
        if path.exists():
            return _snapshot(path)
    if dataset.lower() in map(str.lower, task.tsvs):
        if (found := named_tsv(dataset, (root / task.name, root, root / "LMUData"))) is not None:
            return found
        raise VlmpruneError(
            f"There is no {dataset}.tsv in {str(root / task.name)!r}, {str(root)!r} or ~/LMUData; put VLMEvalKit's "
            "file of this name there."
        )
    if task.hub is not None and dataset.count("/") == 1 and not dataset.startswith((".", "/", "~")):
        return None
    names = ", ".join(task.tsvs)
    none = "" if names else " (VLMEvalKit has no file of it)"
    raise VlmpruneError(
        f"There is no data set {dataset!r} for the task {task.name!r}; give a folder, a file"
        f"{', an id of the Hub like ' + repr(task.hub.id) if task.hub else ''}"
        f"{', or one of ' + names if names else ''}{none}."
    )


def _snapshot(path: Path) -> Path:
    """Of a folder in the Hub's cache (`datasets--ORG--NAME`) the files of the newest download."""
    snapshots = path / "snapshots"
    if not snapshots.is_dir():
        return path
    main = path / "refs/main"
    if main.is_file() and (snapshots / main.read_text().strip()).is_dir():
        return snapshots / main.read_text().strip()
    return max(snapshots.iterdir(), key=lambda one: one.stat().st_mtime, default=path)


def _tsv(task: Task, folder: Folder) -> Path | None:
    """The TSV that is read: the one named, or the first in the order of the task's names."""
    there = folder.below(".tsv")
    if folder.path.is_file():
        return there[0] if there else None
    by_name = {path.stem.lower(): path for path in reversed(there)}
    return next((by_name[name.lower()] for name in task.tsvs if name.lower() in by_name), None)


def _names(paths: Iterable[Path], root: Path) -> str:
    """Files as a summary names them: the first, and how many there are."""
    names = [str(path.relative_to(root)) if root.is_dir() else path.name for path in paths]
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
