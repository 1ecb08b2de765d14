"""MMBench (Liu et al., ECCV 2024), English dev split: multiple choice, right only when right in every rotation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.options import circular, listed
from .base import LETTER, Hub, Line, Sample, by, each, mean, whole_units
from .choice import MultipleChoice, check_answer
from .files import Folder
from .readers import Bad, Row, is_empty, text
from .tsv import index_of, options_of, tsv_rows, with_images

NAMES = ("mmbench_dev_en_20231003.tsv", "mmbench_dev_20230712.tsv")
ROTATION = 1_000_000  # official files number the rotations of question i as i + 1,000,000 and so on


class MMBench(MultipleChoice):
    """Circular accuracy; a file without rotations gets them made.

    A question of n options counts with all of its n rotations only: one that lacks any is left out of every number.
    """

    name = "mmbench"
    whole = True
    files: ClassVar = {NAMES[0]: "MMBench's English dev TSV, images in base64"}
    hub = Hub("lmms-lab/MMBench", "en", "dev")
    tsvs = (
        *(name.removesuffix(".tsv") for name in NAMES),
        *(f"MMBench_{split}_{language}{version}" for language in ("EN", "CN") for split in ("DEV", "TEST")
          for version in ("", "_V11")),
        "MMBench", "MMBench_CN", "MMBench_V11", "MMBench_CN_V11",
    )  # fmt: skip

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        path = folder.file(NAMES[0])
        yield from self.from_tsv(tsv_rows(path), path.name)

    def from_table(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample | Bad]:
        found = list(rows)
        yield from self.from_tsv(with_images(lambda: found, "row"), "row")

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        found = list(rows)
        rotated = any(row["highest"] >= ROTATION for row in found if isinstance(row, Row))
        yield from each(found, lambda row: self._samples(row, row["image"], rotated), where)

    def _samples(self, row: Mapping[str, Any], image: Any, rotated: bool) -> Iterator[Sample]:
        index = index_of(row)
        given_options = options_of(row)
        letters, texts = list(given_options), list(given_options.values())
        letter = text(row, "answer")
        check_answer(letter, given_options)
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
