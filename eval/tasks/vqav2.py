"""VQAv2 (Goyal et al., CVPR 2017), validation split: open questions on COCO images, ten people's answers each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.vqa import vqa_accuracy
from .base import Hub, Sample, Task, each, short
from .files import Folder
from .readers import Bad, BadRow, Row, number, read_json, several, text, texts, value
from .tsv import index_of

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


class VQAv2(Task):
    """Accuracy with leave-one-out averaging over the ten people."""

    name = "vqav2"
    by = "answer_type"
    scorer = staticmethod(vqa_accuracy)
    files: ClassVar = {
        QUESTIONS: "from v2_Questions_Val_mscoco.zip of visualqa.org",
        ANNOTATIONS: "from v2_Annotations_Val_mscoco.zip of visualqa.org",
        "val2014/": "COCO's val2014 images",
    }
    hub = Hub("lmms-lab/VQAv2", None, "validation")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        questions, annotations = read_json(folder.file(QUESTIONS)), read_json(folder.file(ANNOTATIONS))
        images = folder.folder("val2014")
        people = {
            row.get("question_id"): row for row in value(annotations, "annotations", list) if isinstance(row, dict)
        }

        def build(row: Any) -> Iterable[Sample]:
            path = images / f"COCO_val2014_{number(row, 'image_id'):012d}.jpg"
            if (answers := people.get(row.get("question_id"))) is None:
                raise BadRow(f"question {row.get('question_id')!r} has no annotation")
            yield self._sample(row, answers, path)

        yield from each(value(questions, "questions", list), build, QUESTIONS)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield self._sample(row, row, row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        answers = [{"answer": one} for one in several(row["answer"])]
        named = {"question_id": index_of(row), "image_id": row["image_name"]}
        return {"answer_type": "other", **row, **named, "answers": answers}

    def _sample(self, row: Mapping[str, Any], annotation: Mapping[str, Any], image: Any) -> Sample:
        answers = [text(one, "answer") for one in value(annotation, "answers", list)]
        texts({"answers": answers}, "answers")
        return Sample(
            str(number(row, "question_id")),
            short(text(row, "question")),
            image,
            answers,
            str(row.get("image_id")),
            {"answer_type": annotation.get("answer_type")},
        )
