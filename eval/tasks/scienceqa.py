"""ScienceQA-IMG (Lu et al., NeurIPS 2022), test split: school science, the questions that have an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.options import LETTERS, lettered, listed, scienceqa_reading
from .base import LETTER, Hub, Sample, each
from .choice import MultipleChoice, check_answer
from .files import Folder
from .readers import Bad, BadRow, Row, is_empty, number, read_json, text, texts, value
from .tsv import index_of, options_of


class ScienceQA(MultipleChoice):
    """Accuracy of the option chosen; an answer that names none is wrong and counted as unreadable."""

    name = "scienceqa"
    by = "subject"
    official = staticmethod(scienceqa_reading)
    files: ClassVar = {
        "problems.json": "from data/scienceqa of ScienceQA",
        "pid_splits.json": "from data/scienceqa of ScienceQA",
        "test/": "the images of its test.zip, one folder per question",
    }
    hub = Hub("lmms-lab/ScienceQA", "ScienceQA-IMG", "test")
    tsvs = ("ScienceQA_TEST", "ScienceQA_VAL")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        problems = folder.json("problems.json", dict, "a table of problems")
        test = value(read_json(folder.file("pid_splits.json")), "test", list)
        images = folder.folder("test")

        def build(name: Any) -> Iterable[Sample]:
            if str(name) not in problems:
                raise BadRow(f"problem {name!r} is not in problems.json")
            row = problems[str(name)]
            if isinstance(row, dict) and row.get("image") is None:
                return  # a question without an image is no part of ScienceQA-IMG
            yield self._sample(str(name), row, images / str(name) / text(row, "image"))

        yield from each(test, build, "pid_splits.json, test")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        yield self._sample(self.next_row(), row, row["image"])

    def _sample(self, name: str, row: Mapping[str, Any], image: Any) -> Sample:
        choices, right = texts(row, "choices"), number(row, "answer")
        if not 0 <= right < len(choices):
            raise BadRow(f"the field 'answer' is {right}, but there are {len(choices)} choices")
        return self._chosen(name, row, lettered(choices), LETTERS[right], row.get("subject"), image)

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        def build(row: Row) -> Iterable[Sample]:
            name, options, subject = str(index_of(row)), options_of(row), row.get("category")
            yield self._chosen(name, row, options, text(row, "answer"), subject, row["image"])

        yield from each(rows, build, where)

    def _chosen(
        self, name: str, row: Mapping[str, Any], options: Mapping[str, str], right: str, subject: Any, image: Any
    ) -> Sample:
        check_answer(right, options)
        hint = "" if is_empty(row.get("hint")) else row["hint"]
        prompt = "\n".join([*([f"Context: {hint}"] if hint else []), text(row, "question"), listed(options), LETTER])
        return Sample(name, prompt, image, right, name, {"subject": subject, "options": options})
