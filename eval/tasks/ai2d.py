"""AI2D (Kembhavi et al., ECCV 2016), test split: multiple choice on school-book diagrams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.options import LETTERS, lettered, listed
from .base import LETTER, Hub, Sample, each
from .choice import MultipleChoice, check_answer
from .files import Folder
from .readers import Bad, BadRow, Row, number, read_json, read_text, text, texts, value
from .tsv import index_of, options_of


class AI2D(MultipleChoice):
    """Accuracy of the option chosen."""

    name = "ai2d"
    files: ClassVar = {
        "ai2d_test_ids.csv": "from ai2d-all.zip (AllenAI)",
        "questions/": "its questions, one JSON file a diagram",
        "images/": "its diagrams",
    }
    hub = Hub("lmms-lab/ai2d", None, "test")
    tsvs = ("AI2D_TEST", "AI2D_TEST_NO_MASK")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        names = read_text(folder.file("ai2d_test_ids.csv")).split()
        questions, images = folder.folder("questions"), folder.folder("images")

        def build(name: str) -> Iterable[Sample]:
            path = questions / f"{name}.png.json"
            if not path.is_file():
                raise BadRow(f"there is no questions/{path.name}")
            for question, row in value(read_json(path), "questions", dict).items():
                options, right = texts(row, "answerTexts"), number(row, "correctAnswer")
                yield self._sample(text(row, "questionId"), question, options, right, name, images / f"{name}.png")

        yield from each(names, build, "diagram")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        name = self.next_row()
        options = texts(row, "options")
        yield self._sample(name, text(row, "question"), options, number(row, "answer"), name, row["image"])

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        def build(row: Row) -> Iterable[Sample]:
            name, group = str(index_of(row)), row["image_name"]
            yield self._chosen(name, text(row, "question"), options_of(row), text(row, "answer"), group, row["image"])

        yield from each(rows, build, where)

    def _sample(self, name: str, question: str, texts: list[str], right: int, group: str, image: Any) -> Sample:
        if not 0 <= right < len(texts):
            raise BadRow(f"the right answer is {right}, but there are {len(texts)} options")
        return self._chosen(name, question, lettered(texts), LETTERS[right], group, image)

    def _chosen(
        self, name: str, question: str, options: Mapping[str, str], right: str, group: str, image: Any
    ) -> Sample:
        check_answer(right, options)
        prompt = f"{question}\n{listed(options)}\n{LETTER}"
        return Sample(name, prompt, image, right, group, {"options": options})
