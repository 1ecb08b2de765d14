"""GQA (Hudson and Manning, CVPR 2019), test-dev balanced: compositional questions, one right answer each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from .base import Hub, Sample, Task, each, short
from .readers import Bad, BadRow, Folder, Stored, hub_table, text

QUESTIONS = "testdev_balanced_questions.json"


class GQA(Task):
    """Exact match with the one answer."""

    name = "gqa"
    files: ClassVar = {QUESTIONS: "from questions1.2.zip of GQA", "images/": "the images of GQA's images.zip"}
    hub = Hub("lmms-lab/GQA", "testdev_balanced_instructions", "testdev")

    def samples(self, root: Path, *, hub: bool = False) -> Iterator[Sample | Bad]:
        if not hub:
            yield from self.from_files(Folder(root / self.name, self.name, self.files, True))
            return
        # On the Hub questions and images are two tables.
        images = hub_table(self.name, self.hub.id, "testdev_balanced_images", self.hub.split)
        rows = {name: at for at, name in enumerate(images["id"])}

        def build(row: Any) -> Iterable[Sample]:
            image = text(row, "imageId")
            if image not in rows:
                raise BadRow(f"there is no image {image!r}")
            yield self._sample(text(row, "id"), row, Stored(images, rows[image]))

        questions = hub_table(self.name, self.hub.id, self.hub.config, self.hub.split)
        yield from each(questions, build)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        questions, images = folder.json(QUESTIONS, dict, "a table by question id"), folder.folder("images")

        def build(item: tuple[str, Any]) -> Iterable[Sample]:
            yield self._sample(item[0], item[1], images / f"{text(item[1], 'imageId')}.jpg")

        yield from each(questions.items(), build, QUESTIONS)

    def _sample(self, name: str, row: Mapping[str, Any], image: Any) -> Sample:
        return Sample(name, short(text(row, "question")), image, text(row, "answer"), text(row, "imageId"))
