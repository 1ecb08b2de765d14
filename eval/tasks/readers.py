"""Reading what stands in benchmarks' files: texts in every encoding, JSON, JSONL, TSV, images in base64, typed fields.

A file that is missing is an error with one sentence. What is wrong inside a file is a `Bad`, which the summary names.
"""

from __future__ import annotations

import ast
import base64
import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from vlmprune.errors import VlmpruneError

if TYPE_CHECKING:
    from .files import Place

T = TypeVar("T")
# Longest first: UTF-32's mark starts like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_DATA_URL = re.compile(r"data:[\w./+-]*(?:;[\w=.+-]+)*,", re.IGNORECASE)


@dataclass(frozen=True)
class Bad:
    """Something of the data that could not be used: where it is and why."""

    where: str
    why: str


class BadRow(VlmpruneError):
    """A row, or a whole file, that cannot be read; becomes a `Bad`."""


class Row(dict[str, Any]):
    """A row of a table; what it lacks is a `BadRow`."""

    def __missing__(self, name: str) -> Any:
        raise BadRow(f"the field {name!r} is missing")


def encoding_of(start: bytes) -> str:
    """The encoding of a text by its first bytes: by its byte-order mark, else UTF-16 where every other byte is 0."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    pairs = [start[at : at + 2] for at in range(0, len(start) - 1, 2)]
    for zero, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        if pairs and sum(pair[zero] == 0 != pair[1 - zero] for pair in pairs) > len(pairs) / 2:
            return name
    return "utf-8"


def check_start(path: Place, start: bytes) -> None:
    """Refuse a file without content.

    Raises:
        BadRow: it is empty, or a pointer of Git LFS.
    """
    if not start:
        raise BadRow(f"{path.name} is empty")
    if start.startswith(_POINTER):
        raise BadRow(f"{path.name} is a pointer of Git LFS, not the file itself; fetch it with git lfs pull")


def read_text(path: Place) -> str:
    """A file's text, without a byte-order mark.

    Raises:
        BadRow: it is empty, or neither UTF-8, UTF-16 nor UTF-32.
    """
    content = path.read_bytes()
    check_start(path, content)
    try:
        return content.decode(encoding_of(content[:64]))
    except UnicodeDecodeError as error:
        raise BadRow(f"{path.name} is not UTF-8 text ({error})") from None


def read_json(path: Place) -> Any:
    """A JSON file's value.

    Raises:
        BadRow: it is empty or no JSON.
    """
    content = read_text(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{path.name} is not JSON ({error})") from None


def read_json_lines(path: Place) -> Iterator[Any]:
    """A JSONL file's values; a line that is not JSON comes as a `Bad`.

    Raises:
        BadRow: the file is empty.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Bad(f"{path.name}, line {number}", f"no JSON ({error})")


def read_tsv(path: Place, delimiter: str = "\t") -> Iterator[Row | Bad]:
    """The rows of a table with a heading, separated by tabs or commas; empty cells are left out of a row.

    Raises:
        BadRow: the file is empty, in no known encoding, or no table.
    """
    with path.open("rb") as file:
        start = file.read(64)
    check_start(path, start)
    csv.field_size_limit(1 << 30)  # images stand in cells, in base64
    with path.open("rb") as file, io.TextIOWrapper(file, encoding=encoding_of(start), newline="") as text:
        rows = csv.DictReader(text, delimiter=delimiter)
        try:
            if len(rows.fieldnames or ()) < 2:
                between = "tabs" if delimiter == "\t" else f"{delimiter!r}"
                raise BadRow(f"{path.name} is no table of columns separated by {between}")
            for row in rows:
                if None in row:
                    yield Bad(f"{path.name}, line {rows.line_num}", "the row has more cells than the heading")
                    continue
                yield Row({name.strip(): cell for name, cell in row.items() if cell not in (None, "")})
        except UnicodeDecodeError as error:
            raise BadRow(f"{path.name} is not UTF-8 text ({error})") from None
        except csv.Error as error:
            raise BadRow(f"{path.name} cannot be read as a table ({error})") from None


def from_base64(cell: str) -> bytes:
    """An image's content from a cell, as tables hold it: with line breaks, url-safe, unpadded, behind `data:...,`.

    Raises:
        BadRow: it is not base64.
    """
    text = "".join(cell.strip().strip("'\"").split())
    if mark := _DATA_URL.match(text):
        text = text[mark.end() :]
    text = text.translate(str.maketrans("-_", "+/")).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:  # not its alphabet, or a length that no bytes give
        raise BadRow(f"the field 'image' is not base64 ({error})") from None


def several(cell: Any) -> list[str]:
    """The texts of a cell: a table of text alone writes a list as Python, NumPy or JSON does, and one text as it is."""
    if isinstance(cell, str) and cell.strip()[:1] == "[" and cell.strip()[-1:] == "]":
        inside = cell.strip()[1:-1]
        # NumPy writes no commas, and Python would join what stands side by side.
        if not re.sub(r"[\s,]", "", _QUOTED.sub("", inside)):
            return [str(ast.literal_eval(one)) for one in _QUOTED.findall(inside)]
        try:
            cell = json.loads(cell)
        except ValueError:
            return [cell]
    return [str(one) for one in cell] if isinstance(cell, list | tuple) else [str(cell)]


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
