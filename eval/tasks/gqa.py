"""GQA (Hudson and Manning, CVPR 2019), test-dev balanced: compositional questions, one right answer each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from vlmprune.accounting.scores import exact_match
from vlmprune.errors import VlmpruneError

from ..scorers.text import gqa_match
from .base import Hub, Sample, Task, each, short
from .files import Folder
from .readers import Bad, BadRow, Row, text
from .tables import Stored, TablePart, hub_table, local_table, rows_of
from .tsv import index_of

QUESTIONS = "testdev_balanced_questions.json"


def images_of(config: str | None) -> str:
    """The configuration that holds the images of a configuration of questions."""
    return (config or "").replace("instructions", "images")


def joined(questions: Any, images: Any) -> Iterator[Row]:
    """Questions with their images, which on the Hub are two tables."""
    if images is None:
        yield from rows_of(questions)
        return
    places = {name: at for at, name in enumerate(images["id"])}
    for row in rows_of(questions):
        found = places.get(row.get("imageId"))
        yield row if found is None else Row(row, image=Stored(images, found))


class GQA(Task):
    """Exact match with the one answer."""

    name = "gqa"
    scorer = staticmethod(gqa_match)
    by_person = staticmethod(exact_match)
    files: ClassVar = {QUESTIONS: "from questions1.2.zip of GQA", "images/": "the images of GQA's images.zip"}
    hub = Hub("lmms-lab/GQA", "testdev_balanced_instructions", "testdev")
    tsvs = ("GQA_TestDev_Balanced",)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        if "image" not in row:
            raise BadRow(f"there is no image {text(row, 'imageId')!r}")
        yield self._sample(text(row, "id"), row, row["image"])

    def hub_rows(self, hub: Hub) -> Iterator[Row]:
        questions, images = hub_table(self.name, hub.id, hub.config, hub.split), None
        if "image" not in questions.column_names:
            images = hub_table(self.name, hub.id, images_of(hub.config), hub.split)
        yield from joined(questions, images)

    def parquet_rows(self, parts: Sequence[TablePart], every: Sequence[TablePart]) -> Iterator[Row]:
        questions, images = local_table([part.path for part in parts]), None
        if "image" not in questions.column_names:
            names = {images_of(config) for part in parts for config in part.configs}
            files = [one.path for one in every if names & set(one.configs) and one.split == parts[0].split]
            if not files:
                raise VlmpruneError(
                    f"The task {self.name!r} finds no images for its questions; put the parquet files of "
                    f"{' or '.join(sorted(map(repr, names))) or 'them'} beside theirs."
                )
            images = local_table(files)
        yield from joined(questions, images)

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "id": str(index_of(row)), "imageId": row["image_name"]}

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        questions, images = folder.json(QUESTIONS, dict, "a table by question id"), folder.folder("images")

        def build(item: tuple[str, Any]) -> Iterable[Sample]:
            yield self._sample(item[0], item[1], images / f"{text(item[1], 'imageId')}.jpg")

        yield from each(questions.items(), build, QUESTIONS)

    def _sample(self, name: str, row: Mapping[str, Any], image: Any) -> Sample:
        return Sample(name, short(text(row, "question")), image, text(row, "answer"), text(row, "imageId"))
