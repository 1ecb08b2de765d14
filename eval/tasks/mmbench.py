"""MMBench (Liu et al., ECCV 2024), English dev split: multiple choice, right only when right in every rotation."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.options import circular, listed
from .base import LETTER, Hub, Line, Sample, by, each, mean, whole_units
from .choice import MultipleChoice
from .readers import Bad, BadRow, Folder, is_empty, read_tsv, text, value

NAMES = ("mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv", "mmbench_dev_20230712.tsv")
ROTATION = 1_000_000  # official files number the rotations of question i as i + 1,000,000 and so on
LONGEST_REFERENCE = 64  # VLMEvalKit reads a cell of at most so many characters as the index of another row


class MMBench(MultipleChoice):
    """Circular accuracy; a file without rotations gets them made.

    A question of n options counts with all of its n rotations only: one that lacks any is left out of every number.
    """

    name = "mmbench"
    whole = True
    files: ClassVar = {NAMES[0]: "MMBench's English dev TSV, images in base64"}
    hub = Hub("lmms-lab/MMBench", "en", "dev")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        path = folder.file(folder.first(*NAMES) or NAMES[0])
        yield from self._all(read_tsv(path), path.name)

    def from_table(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample | Bad]:
        yield from self._all(rows, "row")

    def _all(self, source: Iterable[Mapping[str, Any]], where: str) -> Iterator[Sample | Bad]:
        """The samples of all rows; every row is read first, since an image may stand in any of them."""
        rows: list[Mapping[str, Any]] = []
        stopped: list[Bad] = []
        try:
            rows += source
        except BadRow as error:
            stopped = [Bad(where, str(error))]
        images: dict[int, Any] = {}
        for row in rows:
            if (index := _whole_number(row.get("index"))) is not None and not is_empty(row.get("image")):
                images.setdefault(index, row["image"])
        rotated = any((_whole_number(row.get("index")) or 0) >= ROTATION for row in rows)
        decoded: dict[int, bytes] = {}  # rotations share one copy

        def build(row: Any) -> Iterable[Sample]:
            yield from self._samples(row, _image(row, images, decoded), rotated)

        yield from each(rows, build, where)
        yield from stopped

    def _samples(self, row: Mapping[str, Any], image: Any, rotated: bool) -> Iterator[Sample]:
        index = _index(row)
        letters = [letter for letter in "ABCD" if not is_empty(row.get(letter))]
        texts = [str(row[letter]) for letter in letters]
        letter = text(row, "answer")
        if letter not in letters:
            raise BadRow(f"the field 'answer' is {letter!r}, but there are {len(texts)} options")
        right, hint = letters.index(letter), row.get("hint")
        for turn in range(1 if rotated else len(texts)):
            options = dict(zip(letters, texts[turn:] + texts[:turn], strict=True))
            given = [] if is_empty(hint) else [str(hint)]
            prompt = "\n".join([*given, text(row, "question"), listed(options), LETTER])
            yield Sample(
                str(index + turn * ROTATION),
                prompt,
                image,
                letters[(right - turn) % len(texts)],
                str(index % ROTATION),
                {"category": row.get("category"), "options": options, "members": len(texts)},
            )

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        lines = whole_units(lines)
        passed = circular([line["score"] == 1 for line in lines], [line["group"] for line in lines])
        return {question: (float(right), 1.0) for question, right in passed.items()}

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        lines = whole_units(lines)
        if not lines:
            return {}
        out = {
            "accuracy": mean(above for above, _ in self.units(lines).values()),
            "accuracy_without_rotations": mean(line["score"] for line in lines),
            "unreadable": mean(line["parsed"] is None for line in lines),
        }
        for category, part in by(lines, "category").items():
            out[f"category/{category}"] = mean(above for above, _ in self.units(part).values())
        return out


def _index(row: Mapping[str, Any]) -> int:
    """A row's own index, which a table may hold as a float, as it does references to it."""
    found = _whole_number(value(row, "index", (int, str, float)))
    if found is None:
        raise BadRow(f"the field 'index' is {row['index']!r:.40}, no whole number")
    return found


def _whole_number(cell: Any) -> int | None:
    """A cell as an index: an int, or digits with the ".0" that a table of floats leaves behind."""
    if isinstance(cell, str) and re.fullmatch(r"\s*[0-9]+(\.0)?\s*", cell) and len(cell) <= LONGEST_REFERENCE:
        return int(cell.strip().removesuffix(".0"))
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    return cell if isinstance(cell, int) and not isinstance(cell, bool) else None


def _image(row: Mapping[str, Any], images: Mapping[int, Any], decoded: dict[int, bytes]) -> Any:
    """A row's image; where its cell holds another row's index, that row's (VLMEvalKit's files save space so).

    A reference wins over base64: "1000" is four valid characters of it.

    Raises:
        BadRow: there is none, it is not base64, or its references lead nowhere.
    """
    cell, place = row.get("image"), _index(row)
    seen = set()
    while (index := _whole_number(cell)) is not None:
        if index not in images or index in seen:
            why = "refers back to itself" if index in seen else "is not there or has no image"
            raise BadRow(f"the field 'image' refers to row {index}, which {why}")
        seen.add(index)
        cell, place = images[index], index
    if is_empty(cell) or isinstance(cell, float):
        raise BadRow("the field 'image' is missing")
    if not isinstance(cell, str):
        return cell  # an image of a table, fetched when its turn comes
    if place not in decoded:
        try:
            decoded[place] = base64.b64decode(cell, validate=True)
        except binascii.Error as error:
            raise BadRow(f"the field 'image' is not base64 ({error})") from None
    return decoded[place]
