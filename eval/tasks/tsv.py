"""VLMEvalKit's tables: one TSV a data set, images in base64, an image that came before as the index of its row."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .files import Place
from .readers import Bad, BadRow, Row, from_base64, is_empty, read_tsv, several, value

LONGEST_REFERENCE = 64  # VLMEvalKit reads a cell of at most so many characters as the index of another row
LETTERS = "ABCDEFGHIJ"


def tsv_rows(path: Place) -> Iterator[Row | Bad]:
    """The rows of a TSV with their images, as `with_images` gives them."""
    yield from with_images(lambda: read_tsv(path), path.name, path)


def with_images(
    read: Callable[[], Iterable[Mapping[str, Any] | Bad]], where: str, path: Place | None = None
) -> Iterator[Row | Bad]:
    """Rows with their images, one by one: a table may have gigabytes. It is read beforehand to find which images others
    refer to, which may stand in any row; only these are remembered.

    Each gets `image` as `Sample` takes it, `image_name`, the same for the same image, and `highest`, the highest index.

    Args:
        read: begins to read the rows. path: the table, beside which the images lie that it names by `image_path`.
    """
    found: set[int | None] = set()
    indices = [0]
    for row in _until_stopped(read(), where):
        if isinstance(row, Mapping):
            indices.append(whole_number(row.get("index")) or 0)
            found.add(whole_number(row.get("image")))
    images: dict[int, Any] = {}
    for row in _until_stopped(read(), where) if found - {None} else ():
        index = whole_number(row.get("index")) if isinstance(row, Mapping) else None
        if isinstance(row, Mapping) and index is not None and index in found and not is_empty(row.get("image")):
            images.setdefault(index, row["image"])
    decoded: dict[int, tuple[bytes, str]] = {}  # rows that refer to another share one copy
    highest = max(indices)
    for at, row in enumerate(_until_stopped(read(), where)):
        if isinstance(row, Bad):
            yield row
            continue
        try:
            image, name = _image(row, images, decoded, path)
        except BadRow as error:
            yield Bad(f"{where} {at}", str(error))
            continue
        named = row.get("image_path")
        yield Row(row, image=image, image_name=name if is_empty(named) else str(named), highest=highest)


def _until_stopped(rows: Iterable[Any], where: str) -> Iterator[Any]:
    """The rows as far as they can be read, and then why not farther."""
    try:
        yield from rows
    except BadRow as error:
        yield Bad(where, str(error))


def index_of(row: Mapping[str, Any]) -> int:
    """A row's own index, which a table may hold as a float, as it does references to it."""
    found = whole_number(value(row, "index", (int, str, float)))
    if found is None:
        raise BadRow(f"the field 'index' is {row['index']!r:.40}, no whole number")
    return found


def whole_number(cell: Any) -> int | None:
    """A cell as an index: an int, or digits with the ".0" that a table of floats leaves behind."""
    if isinstance(cell, str) and re.fullmatch(r"\s*[0-9]+(\.0)?\s*", cell) and len(cell) <= LONGEST_REFERENCE:
        return int(cell.strip().removesuffix(".0"))
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return cell if isinstance(cell, int) and not isinstance(cell, bool) else None


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The options by letter; a letter whose cell is empty is no option, and the others keep theirs."""
    return {letter: str(row[letter]) for letter in LETTERS if not is_empty(row.get(letter))}


def _image(
    row: Mapping[str, Any], images: Mapping[int, Any], decoded: dict[int, tuple[bytes, str]], path: Place | None
) -> tuple[Any, str]:
    """A row's image and its name; where its cell holds another row's index, that row's.

    A reference wins over base64: "1000" is four valid characters of it.

    Raises:
        BadRow: there is none, it is not base64, or its references lead nowhere.
    """
    cell, place = row.get("image"), index_of(row)
    if is_empty(cell) and path is not None and not is_empty(row.get("image_path")):
        return _beside(path, str(row["image_path"])), str(place)
    seen = set()
    while (index := whole_number(cell)) is not None:
        if index not in images or index in seen:
            why = "refers back to itself" if index in seen else "is not there or has no image"
            raise BadRow(f"the field 'image' refers to row {index}, which {why}")
        seen.add(index)
        cell, place = images[index], index
    if is_empty(cell) or isinstance(cell, float):
        raise BadRow("the field 'image' is missing")
    if not isinstance(cell, str):
        return cell, str(place)  # an image of a table, fetched when its turn comes
    shared = images.get(place) == cell  # two rows may have one index
    if shared and place in decoded:
        return decoded[place]
    found = several(cell)
    if len(found) != 1:
        raise BadRow(f"the field 'image' holds {len(found)} images, and this task asks about one")
    content = from_base64(found[0])
    made = content, hashlib.sha256(content).hexdigest()[:16]
    if shared:
        decoded[place] = made
    return made


def _beside(table: Place, name: str) -> Any:
    """An image file that a table names, where VLMEvalKit and people put them."""
    folder = table.parent
    for place in (folder, folder / "images", folder / "images" / table.stem):
        if (place / name).is_file():
            return place / name
    raise BadRow(f"there is no image {name!r} beside {table.name}")


def named_tsv(name: str, folders: Iterable[Path]) -> Path | None:
    """The table of this name in one of the folders, or where VLMEvalKit keeps its own."""
    homes = [Path(os.environ[name]) for name in ("LMUData",) if name in os.environ]  # spelt as the kit does
    for folder in (*folders, *homes, Path.home() / "LMUData"):
        for path in sorted(folder.glob("*.tsv")):
            if path.stem.lower() == name.lower():
                return path
    return None
