"""EarthVQA (Wang et al., AAAI 2024), validation split: land cover questions on aerial images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from ..scorers.text import as_number
from .base import Line, Sample, Task, by, each, mean, short
from .files import Folder, Place
from .readers import Bad, text

QUESTIONS = "Val_QA.json"


class EarthVQA(Task):
    """Accuracy over all questions and by type, and the root mean square error of counts."""

    name = "earthvqa"
    by = "type"
    files: ClassVar = {QUESTIONS: "from EarthVQA", "Val/": "its validation images, images_png somewhere below"}

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        questions = folder.json(QUESTIONS, dict, "a table by image")
        images = folder.folder("Val")
        paths: list[Place] = sorted(images.glob("**/images_png/*.png"), key=str)
        found = {path.name: path for path in paths}

        def build(item: tuple[str, int, Any]) -> Iterable[Sample]:
            image, at, row = item
            kind, answer = text(row, "Type"), text(row, "Answer")
            path = found.get(image, images / "images_png" / image)
            meta = {"type": kind, "truth": answer}
            yield Sample(f"{image}/{at}", short(text(row, "Question")), path, answer, image, meta)

        for image, rows in questions.items():
            if not isinstance(rows, list):
                yield Bad(f"{QUESTIONS}, {image}", f"of type {type(rows).__name__}, not a list of questions")
                continue
            yield from each([(image, at, row) for at, row in enumerate(rows)], build, f"{QUESTIONS}, {image}, question")

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        out = super().metrics(lines)
        for kind, part in by(lines, "type").items():
            pairs = [(as_number(line["parsed"]), as_number(line["meta"]["truth"])) for line in part]
            errors = [(a - b) ** 2 for a, b in pairs if a is not None and b is not None]
            if "count" in kind.lower() and errors:
                out[f"rmse/{kind}"] = math.sqrt(mean(errors))
                out[f"rmse_answers/{kind}"] = len(errors) / len(part)  # the rest gave no number
        return out
