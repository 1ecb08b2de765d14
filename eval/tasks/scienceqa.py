"""ScienceQA-IMG (Lu et al., NeurIPS 2022), test split: school science, the questions that have an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.options import lettered, listed
from .base import LETTER, Hub, Sample, each
from .choice import MultipleChoice
from .readers import Bad, BadRow, Folder, number, read_json, text, texts, value


class ScienceQA(MultipleChoice):
    """Accuracy of the option chosen; an answer that names none is wrong and counted as unreadable."""

    name = "scienceqa"
    by = "subject"
    files: ClassVar = {
        "problems.json": "from data/scienceqa of ScienceQA",
        "pid_splits.json": "from data/scienceqa of ScienceQA",
        "test/": "the images of its test.zip, one folder per question",
    }
    hub = Hub("lmms-lab/ScienceQA", "ScienceQA-IMG", "test")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        problems = value({"problems": read_json(folder.file("problems.json"))}, "problems", dict)
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
        options, right = lettered(texts(row, "choices")), number(row, "answer")
        if not 0 <= right < len(options):
            raise BadRow(f"the field 'answer' is {right}, but there are {len(options)} choices")
        hint = row.get("hint") or ""
        prompt = "\n".join([*([f"Context: {hint}"] if hint else []), text(row, "question"), listed(options), LETTER])
        return Sample(
            name, prompt, image, "ABCDEFGHIJ"[right], name, {"subject": row.get("subject"), "options": options}
        )
