"""POPE (Li et al., EMNLP 2023): is there such an object? Random, popular and adversarial questions on COCO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.yes_no import NEITHER, YES, confusion, pope_reading, read_yes_no
from .base import OFFICIAL, PERSON, Hub, Line, Sample, Task, by, each, mean, short
from .files import Folder
from .readers import Bad, BadRow, Row, read_json_lines, text
from .tsv import index_of

READERS = {OFFICIAL: pope_reading, PERSON: read_yes_no}
CATEGORIES = ("random", "popular", "adversarial")


class Pope(Task):
    """F1 of "yes" over all questions, as POPE's script reads answers: what does not say no says yes.

    Beside it, the numbers where an answer that says neither is wrong, and how many do.
    """

    name = "pope"
    main = "f1"
    files: ClassVar = {
        **{f"coco_pope_{category}.json": "from output/coco of POPE" for category in CATEGORIES},
        "val2014/": "COCO's val2014 images",
    }
    hub = Hub("lmms-lab/POPE", None, "test")
    tsvs = ("POPE",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        images = folder.folder("val2014")
        for category in CATEGORIES:
            name = f"coco_pope_{category}.json"

            def build(row: Any, category: str = category) -> Iterable[Sample]:
                image = text(row, "image")
                yield self._sample(category, row, text(row, "text"), text(row, "label"), image, images / image)

            yield from each(read_json_lines(folder.file(name)), build, name)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        source, category = text(row, "image_source"), text(row, "category")
        yield self._sample(category, row, text(row, "question"), text(row, "answer"), source, row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "question_id": index_of(row), "image_source": row["image_name"]}

    def _sample(
        self, category: str, row: Mapping[str, Any], question: str, label: str, source: str, image: Any
    ) -> Sample:
        if label.lower() not in ("yes", "no"):
            raise BadRow(f"the label is {label!r}, not yes or no")
        name = f"{category}/{row.get('question_id')}"
        return Sample(
            name, short(question), image, label.lower(), source, {"category": category, "label": label.lower()}
        )

    def read(self, sample: Sample, answer: str) -> str:
        return READERS[self.reading](answer)

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        """F1 = sum of 2 hits / sum of (said yes + truly yes), so an image's part of it is a pair of counts."""
        out: dict[str, tuple[float, float]] = {}
        for line in lines:
            said, there = line["parsed"] == YES, line["meta"]["label"] == YES
            above, below = out.get(line["group"], (0.0, 0.0))
            out[line["group"]] = (above + 2 * (said and there), below + said + there)
        return out

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        truths = [line["meta"]["label"] for line in lines]
        out = confusion([line["parsed"] for line in lines], truths)
        out["unreadable"] = mean(read_yes_no(line["answer"]) == NEITHER for line in lines)
        for category, part in by(lines, "category").items():
            labels = [line["meta"]["label"] for line in part]
            out[f"f1/{category}"] = confusion([line["parsed"] for line in part], labels)["f1"]
        out["f1_mean_of_categories"] = mean(v for k, v in out.items() if k.startswith("f1/"))
        for reading, reader in READERS.items():
            found = confusion([reader(line["answer"]) for line in lines], truths)
            out |= {f"{reading}_{name}": found[name] for name in ("accuracy", "f1", "yes_ratio")}
        return out
