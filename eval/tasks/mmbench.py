"""MMBench (Liu et al., ECCV 2024), English dev split: multiple choice, right only when right in every rotation."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.options import circular, lettered, listed
from .base import LETTER, Hub, Line, Sample, by, each, mean
from .choice import MultipleChoice
from .readers import Bad, BadRow, Folder, number, read_tsv, text

NAMES = ("mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv", "mmbench_dev_20230712.tsv")
ROTATION = 1_000_000  # official files number the rotations of question i as i + 1,000,000 and so on


class MMBench(MultipleChoice):
    """Circular accuracy; a file without rotations gets them made."""

    name = "mmbench"
    files: ClassVar = {NAMES[0]: "MMBench's English dev TSV, pictures in base64"}
    hub = Hub("lmms-lab/MMBench", "en", "dev")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        path = folder.file(folder.first(*NAMES) or NAMES[0])
        rotated = any(row.get("index", "").isdigit() and int(row["index"]) >= ROTATION for row in read_tsv(path))

        def build(row: Any) -> Iterable[Sample]:
            try:
                image = base64.b64decode(text(row, "image"), validate=True)
            except binascii.Error as error:
                raise BadRow(f"the field 'image' is no base64 ({error})") from None
            yield from self._samples(row, image, rotated)

        yield from each(read_tsv(path), build, path.name)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield from self._samples(row, row["image"], False)  # the Hub's table holds every question once

    def _samples(self, row: Mapping[str, Any], image: Any, rotated: bool) -> Iterator[Sample]:
        index = number(row, "index")
        texts = [str(row[letter]) for letter in "ABCD" if row.get(letter) not in (None, "", "nan")]
        letter = text(row, "answer")
        if letter not in lettered(texts):
            raise BadRow(f"the field 'answer' is {letter!r}, but there are {len(texts)} options")
        right, hint = "ABCD".index(letter), row.get("hint")
        for turn in range(1 if rotated else len(texts)):
            options = lettered(texts[turn:] + texts[:turn])
            given = [str(hint)] if hint and hint != "nan" else []
            prompt = "\n".join([*given, text(row, "question"), listed(options), LETTER])
            yield Sample(
                str(index + turn * ROTATION),
                prompt,
                image,
                "ABCD"[(right - turn) % len(texts)],
                str(index % ROTATION),
                {"category": row.get("category"), "options": options},
            )

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        passed = circular([line["score"] == 1 for line in lines], [line["group"] for line in lines])
        return {question: (float(right), 1.0) for question, right in passed.items()}

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        out = {
            "accuracy": mean(above for above, _ in self.units(lines).values()),
            "accuracy_without_rotations": mean(line["score"] for line in lines),
            "unreadable": mean(line["parsed"] is None for line in lines),
        }
        for category, part in by(lines, "category").items():
            out[f"category/{category}"] = mean(above for above, _ in self.units(part).values())
        return out
