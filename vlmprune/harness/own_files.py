"""Files of own questions: rows of JSON lines and of tables, in the encodings that editors and spreadsheets write."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import VlmpruneError

# Columns of a table whose cells may hold several, between bars.
SEVERAL = ("images", "image", "video", "videos", "answers", "answer", "choices")
SEPARATORS = (",", ";", "\t")


class BadQuestionError(VlmpruneError):
    """What is wrong with one question; `read_questions` adds where it stands."""


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each row of a file stands, and the row: a CSV table by the ending .csv or .tsv, else JSON lines."""
    text = read_text(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        return table_rows(path.name, text)
    if text.lstrip().startswith("["):
        raise VlmpruneError(f"{path.name} is one JSON list; write one object a line instead (JSONL)")
    return json_rows(text)


def read_text(path: Path) -> str:
    """A file's text: UTF-8 or UTF-16, with or without a byte order mark (UTF-16 only with one)."""
    if path == Path():  # of an empty text too
        raise VlmpruneError("the data is the working directory itself; give the path of a JSONL or CSV file")
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise VlmpruneError(
            f"the data {str(path)!r:.200} cannot be read ({reason}); give the path of a JSONL or CSV file"
        ) from None
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise VlmpruneError(
            f"{path.name}, line {line}: this is not {encoding[:6].upper().rstrip('-')} text; save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise VlmpruneError(f"{path.name}, line {line}: a zero byte is no text; save the file as UTF-8")
    return text


def json_rows(text: str) -> Iterator[tuple[str, Any]]:
    """The values of JSON lines; lines end at line feeds alone, since others may stand in a JSON string."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line, object_pairs_hook=no_name_twice)
            except BadQuestionError as error:
                yield f"line {number}", error
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", "a number too long, or lists too deep")
                yield f"line {number}", BadQuestionError(f"this is not JSON ({reason}); write one object a line")


def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these fields; JSON itself lets the last of two with one name win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadQuestionError(f"the field {twice!r:.40} is there twice; leave one out")
    return found


def table_rows(name: str, text: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table with a heading, separated by commas, semicolons or tabs, as its heading is."""
    heading = (text.strip().splitlines() or [""])[0]
    separator = max(SEPARATORS, key=heading.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    columns: list[str] = []
    before = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise VlmpruneError(f"{name}, line {before + 1}: this is no row of a table ({error})") from None
        where, before = f"line {before + 1}", reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = [cell.strip() for cell in cells]
            if "question" not in map(str.lower, columns):
                raise VlmpruneError(
                    f"{name}, {where}: the heading {heading!r:.60} has no column 'question'; name the columns image, "
                    "question and answers"
                )
            names = [column.lower() for column in columns]
            twice = next((column for column in columns if column and names.count(column.lower()) > 1), None)
            if twice:
                raise VlmpruneError(f"{name}, {where}: the column {twice!r} is there twice; rename one")
        elif len(cells) > len(columns):
            why = f"there are {len(cells)} cells for {len(columns)} columns; quote a text that holds {separator!r}"
            yield where, BadQuestionError(why)
        else:
            row = zip(columns, cells, strict=False)
            yield where, {column: several(column, cell) for column, cell in row if cell.strip()}


def several(column: str, cell: str) -> Any:
    """A cell that may hold several values: a JSON list, or texts between bars."""
    if column.lower() not in SEVERAL:
        return cell
    if cell.lstrip().startswith("["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            pass  # a text that starts with a bracket
    parts = [part.strip() for part in cell.split("|") if part.strip()]
    return parts if len(parts) != 1 or not column.lower().startswith("video") else parts[0]  # a list may be frames
