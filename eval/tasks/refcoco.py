"""RefCOCO, RefCOCO+ and RefCOCOg (Yu et al., ECCV 2016; Mao et al., CVPR 2016), validation: find what is described.

The official annotations are Python pickles, which can run code when opened; read here are the same referring
expressions as JSON lines (`{"image", "sent", "bbox": [left, top, right, bottom] in pixels}`) or the Hub's table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.boxes import iou, read_box
from .base import Hub, Sample, Task, each
from .readers import Bad, BadRow, Folder, read_json_lines, text, texts, value

PROMPT = "Please provide the bounding box coordinate of the region this sentence describes: {}"


def _files(annotations: str) -> dict[str, str]:
    return {annotations: "one JSON object a line: image, sent, bbox", "train2014/": "COCO's train2014 images"}


class RefCOCO(Task):
    """Fraction of boxes with an intersection over union of 0.5 or more; an answer without a box is wrong."""

    name = "refcoco"
    max_new_tokens = 48
    files: ClassVar = _files("refcoco_val.jsonl")
    hub = Hub("lmms-lab/RefCOCO", None, "val")

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

    def _sample(self, name: str, sentence: str, box: tuple[float, ...], group: str, image: Any) -> Sample:
        return Sample(name, PROMPT.format(sentence), image, list(box), group)

    def read(self, sample: Sample, answer: str) -> list[float] | None:
        size = sample.load_image().size
        box = read_box(answer, size, self.boxes)
        return None if box is None else [box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]]

    def score(self, sample: Sample, parsed: Any) -> float:
        return float(parsed is not None and iou(parsed, sample.truth) >= 0.5)


class RefCOCOPlus(RefCOCO):
    """RefCOCO+: descriptions without words of place."""

    name = "refcoco+"
    files: ClassVar = _files("refcoco+_val.jsonl")
    hub = Hub("lmms-lab/RefCOCOplus", None, "val")


class RefCOCOg(RefCOCO):
    """RefCOCOg: longer descriptions."""

    name = "refcocog"
    files: ClassVar = _files("refcocog_val.jsonl")
    hub = Hub("lmms-lab/RefCOCOg", None, "val")


def corners(numbers: list[Any]) -> tuple[float, float, float, float]:
    """Four numbers.

    Raises:
        BadRow: not four, or no numbers.
    """
    if len(numbers) != 4 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise BadRow(f"the field 'bbox' is {numbers!r}, not four numbers")
    left, top, right, bottom = (float(n) for n in numbers)
    return left, top, right, bottom
