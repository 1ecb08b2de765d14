"""DocVQA (Mathew et al., WACV 2021), validation split: questions on scanned documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from vlmprune.accounting.scores import anls

from .base import Hub, Sample, Task, each, short
from .files import Folder
from .readers import Bad, Row, read_json, several, text, texts, value
from .tsv import index_of

QUESTIONS = "val_v1.0_withQT.json"


class DocVQA(Task):
    """Average normalised Levenshtein similarity (ANLS)."""

    name = "docvqa"
    scorer = staticmethod(anls)
    main = "anls"
    max_new_tokens = 32
    files: ClassVar = {QUESTIONS: "from task 1 of the DocVQA challenge", "documents/": "the pages of spdocvqa_images"}
    hub = Hub("lmms-lab/DocVQA", "DocVQA", "validation")
    tsvs = ("DocVQA_VAL",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows = value(read_json(folder.file(QUESTIONS)), "data", list)
        pages = folder.folder("documents")

        def build(row: Any) -> Iterable[Sample]:
            yield self._sample(row, pages.parent / text(row, "image"))

        yield from each(rows, build, QUESTIONS)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield self._sample(row, row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "questionId": index_of(row), "docId": row["image_name"], "answers": several(row["answer"])}

    def _sample(self, row: Mapping[str, Any], image: Any) -> Sample:
        name = str(value(row, "questionId", (str, int)))
        page = f"{row.get('docId')}/{row.get('ucsf_document_page_no')}"
        return Sample(name, short(text(row, "question")), image, texts(row, "answers"), page)
