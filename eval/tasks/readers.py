"""Reading what benchmarks are published as: JSON, JSONL, TSV, parquet, images; in a folder or on the Hub.

A file that is missing is an error with one sentence. What is wrong inside a file is a `Bad`, which the summary names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlmprune.errors import VlmpruneError

T = TypeVar("T")


@dataclass(frozen=True)
class Bad:
    """Something of the data that could not be used: where it is and why."""

    where: str
    why: str


class BadRow(VlmpruneError):
    """A row, or a whole file, that cannot be read; becomes a `Bad`."""


@dataclass(frozen=True)
class Folder:
    """A task's folder. `files`: what belongs there and where it comes from."""

    path: Path
    task: str
    files: Mapping[str, str]
    on_hub: bool

    def file(self, name: str) -> Path:
        """A file of the task.

        Raises:
            VlmpruneError: it is not there.
        """
        if not (self.path / name).is_file():
            raise self._missing(name, "file")
        return self.path / name

    def folder(self, name: str) -> Path:
        """A folder of images.

        Raises:
            VlmpruneError: it is not there.
        """
        if not (self.path / name).is_dir():
            raise self._missing(name, "folder")
        return self.path / name

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
        return next((name for name in names if (self.path / name).exists()), None)

    def _missing(self, name: str, kind: str) -> VlmpruneError:
        source = self.files.get(name) or self.files.get(f"{name}/")
        other = ", or pass --hub to read the data from the Hugging Face Hub" if self.on_hub else ""
        return VlmpruneError(
            f"The task {self.task!r} finds no {kind} {str(self.path / name)!r}; put it there"
            f"{f' ({source})' if source else ''}{other}."
        )


def read_json(path: Path) -> Any:
    """A JSON file's value.

    Raises:
        BadRow: it is empty or no JSON.
    """
    content = read_text(path)
    try:
        return json.loads(content)
    except ValueError as error:
        raise BadRow(f"{path.name} is not JSON ({error})") from None


def read_json_lines(path: Path) -> Iterator[Any]:
    """A JSONL file's values; a line that is not JSON comes as a `Bad`.

    Raises:
        BadRow: the file is empty.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                yield Bad(f"{path.name}, line {number}", f"no JSON ({error})")


def read_tsv(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a table with a heading, separated by tabs; empty cells are left out of a row.

    Raises:
        BadRow: the file is empty.
    """
    read_text(path, only_check=True)
    csv.field_size_limit(1 << 30)  # images stand in cells, in base64
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield {name: cell for name, cell in row.items() if name is not None and cell not in (None, "")}


def read_text(path: Path, *, only_check: bool = False) -> str:
    """A file's text.

    Raises:
        BadRow: it is empty or no UTF-8.
    """
    if path.stat().st_size == 0:
        raise BadRow(f"{path.name} is empty")
    try:
        return "" if only_check else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(f"{path.name} is not UTF-8 text ({error})") from None


def value(row: Any, name: str, kind: type[T] | tuple[type, ...]) -> T:
    """A field of a row, of the type it must have.

    Raises:
        BadRow: the row is not a table, or the field is missing, empty, or of another type.
    """
    if not isinstance(row, Mapping):
        raise BadRow(f"the row is of type {type(row).__name__}, not a table of fields")
    if row.get(name) is None:
        raise BadRow(f"the field {name!r} is missing")
    found = row[name]
    if isinstance(found, bool) or not isinstance(found, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise BadRow(f"the field {name!r} is of type {type(found).__name__}, not {wanted}")
    return found  # type: ignore[return-value]  # of one of the kinds, checked above


def is_empty(cell: Any) -> bool:
    """Whether nothing stands in a cell: "nan" is what pandas writes for it."""
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in ("", "nan"))


def text(row: Any, name: str) -> str:
    """A field that must be a text with something in it.

    Raises:
        BadRow: as `value`, or there is nothing in it.
    """
    found = value(row, name, str)
    if not found.strip():
        raise BadRow(f"the field {name!r} is empty")
    return found


def texts(row: Any, name: str) -> list[str]:
    """A field that must be a list of at least one text.

    Raises:
        BadRow: as `value`, or a member is not text.
    """
    found = value(row, name, list)
    if not found or not all(isinstance(one, str) for one in found):
        raise BadRow(f"the field {name!r} is not a list of texts")
    return found


def number(row: Any, name: str) -> int:
    """A field that must be a whole number, as int or digits.

    Raises:
        BadRow: as `value`, or it is none.
    """
    found: int | str = value(row, name, (int, str))
    try:
        return int(found)
    except ValueError:
        raise BadRow(f"the field {name!r} is {found!r}, no whole number") from None


# -- parquet and the Hub, through `datasets` ---------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """An image in a column of a data set, fetched when called: memory holds none of them."""

    table: Any
    row: int
    column: str = "image"

    def __call__(self) -> Any:
        cell = self.table[self.row][self.column]
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
        if cell is None:
            raise VlmpruneError(f"row {self.row} holds no image; check the data set")
        return cell


def hub_table(task: str, name: str, config: str | None, split: str) -> Any:
    """A data set of the Hub (or of a folder laid out like one), images left encoded.

    Raises:
        VlmpruneError: `datasets` is not installed, or the data set cannot be had.
    """
    datasets = _datasets(task)
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # no network, no access, a changed layout: whatever it is, the user must act on it
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise VlmpruneError(
            f"The task {task!r} cannot read {name!r} from the Hub ({reason}); check the network and access, or put "
            "the files into the task's folder."
        ) from error
    return _encoded(table, datasets)


def hub_rows(task: str, name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set of the Hub, each with its `image` as something to call."""
    yield from _rows(hub_table(task, name, config, split))


def local_parquet(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """The rows of parquet files, each with its `image` as something to call.

    Raises:
        BadRow: a file is empty or no parquet.
    """
    datasets = _datasets("parquet")
    for path in paths:
        if path.stat().st_size == 0:
            raise BadRow(f"{path.name} is empty")
    try:
        table = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], split="train")
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise BadRow(f"{paths[0].parent.name} cannot be read as parquet ({error.__cause__ or error})") from None
    yield from _rows(_encoded(table, datasets))


def _datasets(task: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise VlmpruneError(
            f"The task {task!r} needs the package datasets to read parquet files or the Hub; install vlmprune[eval]."
        ) from None
    datasets.disable_progress_bars()
    return datasets


def _encoded(table: Any, datasets: Any) -> Any:
    features = table.features.copy()
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            features[name] = datasets.Image(decode=False)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            features[name] = datasets.List(datasets.Image(decode=False))
    return table.cast(features)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    # Texts and numbers stay as they are: they are base64, or refer to another row.
    kind = str(getattr(table.features.get("image"), "dtype", ""))
    images = "image" in table.column_names and not kind.startswith(("string", "large_string", "int", "uint"))
    bare = table.remove_columns("image") if images else table
    for at, row in enumerate(bare):
        yield {**row, "image": Stored(table, at)} if images else row
