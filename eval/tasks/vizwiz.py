"""VizWiz-VQA (Gurari et al., CVPR 2018), validation split: blind people's photos, many of them unanswerable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.vqa import vqa_accuracy
from .base import SHORT, Hub, Line, Sample, Task, each, mean
from .files import Folder
from .readers import Bad, BadRow, Row, several, text, texts, value
from .tsv import index_of

PROMPT = "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n" + SHORT


class VizWiz(Task):
    """VQA accuracy over ten people's answers."""

    name = "vizwiz"
    scorer = staticmethod(vqa_accuracy)
    files: ClassVar = {"val.json": "from Annotations.zip of vizwiz.org's VQA task", "val/": "its validation images"}
    hub = Hub("lmms-lab/VizWiz-VQA", None, "val")
    tsvs = ("VizWiz",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows, images = folder.json("val.json", list, "a list"), folder.folder("val")

        def build(row: Any) -> Iterable[Sample]:
            image = text(row, "image")
            answers = [text(one, "answer") for one in value(row, "answers", list)]
            yield self._sample(image, row, answers, images / image)

        yield from each(rows, build, "val.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield self._sample(text(row, "question_id"), row, texts(row, "answers"), row["image"])

    def hub_row(self, row: Row) -> dict[str, Any]:
        answers = several(row["answers"] if "answers" in row else row["answer"])
        return {**row, "question_id": str(index_of(row)), "answers": answers}

    def _sample(self, name: str, row: Mapping[str, Any], answers: list[str], image: Any) -> Sample:
        if not answers:
            raise BadRow("the field 'answers' is empty")
        unanswerable = 2 * answers.count("unanswerable") > len(answers)
        prompt = PROMPT.format(question=text(row, "question"))
        return Sample(name, prompt, image, answers, name, {"answerable": not unanswerable})

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        answerable = [line["score"] for line in lines if line["meta"]["answerable"]]
        return {"accuracy": mean(line["score"] for line in lines), "accuracy_answerable": mean(answerable)}
