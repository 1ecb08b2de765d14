"""RefCOCO, RefCOCO+ and RefCOCOg (Yu et al., ECCV 2016; Mao et al., CVPR 2016), validation: find what is described.

The official annotations are Python pickles, which can run code when opened; read here are the same referring
expressions as JSON lines (`{"image", "sent", "bbox": [left, top, right, bottom] in pixels}`), the Hub's table, or
VLMEvalKit's, which holds all splits of the three and asks in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.boxes import iou, read_box
from .base import Hub, Sample, Task, each
from .files import Folder
from .readers import Bad, BadRow, Row, is_empty, read_json_lines, text, texts, value
from .tsv import index_of

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}"


def _files(annotations: str) -> dict[str, str]:
    return {annotations: "one JSON object a line: image, sent, bbox", "train2014/": "COCO's train2014 images"}


class RefCOCO(Task):
    """Fraction of boxes with an intersection over union of 0.5 or more; an answer without a box is wrong."""

    name = "refcoco"
    max_new_tokens = 48
    files: ClassVar = _files("refcoco_val.jsonl")
    hub = Hub("lmms-lab/RefCOCO", None, "val")
    tsvs = ("RefCOCO",)
    called: ClassVar = "RefCOCO"  # what VLMEvalKit's table calls it

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        name = next(iter(self.files))
        images = folder.folder("train2014")

        def build(numbered: tuple[int, Any]) -> Iterable[Sample]:
            at, row = numbered
            image = text(row, "image").rsplit("/", 1)[-1]
            yield self._sample(f"{at}", text(row, "sent"), corners(value(row, "bbox", list)), image, images / image)

        for at, row in enumerate(read_json_lines(folder.file(name))):
            yield from each([row if isinstance(row, Bad) else (at, row)], build, f"{name}, row {at}, part")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        left, top, width, height = corners(value(row, "bbox", list))
        box, name = (left, top, left + width, top + height), text(row, "question_id")
        for at, sentence in enumerate(texts(row, "answer")):
            yield self._sample(f"{name}/{at}", sentence, box, str(row.get("file_name")), row["image"])

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        def build(row: Row) -> Iterable[Sample]:
            if split_of(row) == f"{self.called}_val":
                name, asked = f"{self.called}_val_{index_of(row)}", text(row, "question")
                yield Sample(name, asked, row["image"], list(pixels_of(row)), row["image_name"])

        yield from each(rows, build, where)

    def _sample(self, name: str, sentence: str, box: tuple[float, ...], group: str, image: Any) -> Sample:
        return Sample(name, PROMPT.format(sentence), image, list(box), group)

    def read(self, sample: Sample, answer: str) -> list[float] | None:
        size = sample.load_image().size
        seen = self.seen_size(size) if self.boxes in ("auto", "resized") else size
        box = read_box(answer, seen, self.boxes)
        return None if box is None else [box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]]

    def score(self, sample: Sample, parsed: Any) -> float:
        return float(parsed is not None and iou(parsed, sample.truth) >= 0.5)


class RefCOCOPlus(RefCOCO):
    """RefCOCO+: descriptions without words of place."""

    name = "refcoco+"
    files: ClassVar = _files("refcoco+_val.jsonl")
    hub = Hub("lmms-lab/RefCOCOplus", None, "val")
    called: ClassVar = "RefCOCO+"


class RefCOCOg(RefCOCO):
    """RefCOCOg: longer descriptions."""

    name = "refcocog"
    files: ClassVar = _files("refcocog_val.jsonl")
    hub = Hub("lmms-lab/RefCOCOg", None, "val")
    called: ClassVar = "RefCOCOg"


def corners(numbers: list[Any]) -> tuple[float, float, float, float]:
    """Four numbers.

    Raises:
        BadRow: not four, or no numbers.
    """
    if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise BadRow(f"the field 'bbox' is {numbers!r}, not four numbers")
    left, top, right, bottom = (float(n) for n in numbers)
    return left, top, right, bottom


def split_of(row: Mapping[str, Any]) -> str:
    """The split of a row of VLMEvalKit's table, as its column `split` has it: `RefCOCO_val` for "RefCOCO val"."""
    if not is_empty(row.get("split")):
        return str(row["split"]).strip()
    return "_".join(text(row, "category").split())


def pixels_of(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """The box of a row of VLMEvalKit's table in pixels: its four columns, or its answer as fractions of the image."""
    sides = [row.get(f"bbox_{side}") for side in ("x1", "y1", "x2", "y2")]
    if not any(map(is_empty, sides)):
        return corners([number(one) for one in sides])
    found = [number(one) for one in re.findall(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?", text(row, "answer"))]
    left, top, right, bottom = corners(found)
    if max(map(abs, found)) > 1.5:
        return left, top, right, bottom
    width, height = number(value(row, "width", (str, int, float))), number(value(row, "height", (str, int, float)))
    return left * width, top * height, right * width, bottom * height


def number(cell: Any) -> float:
    """A number of a table.

    Raises:
        BadRow: it is none.
    """
    try:
        return float(cell)
    except (TypeError, ValueError):
        raise BadRow(f"{cell!r:.40} stands where a number of a box must be") from None
