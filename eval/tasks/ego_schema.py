"""EgoSchema (Mangalam et al., NeurIPS 2023): five long options about three minutes of somebody's day.

Answers of 500 questions are published; those of all others a server has, and they are written to `predictions.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.letters import egoschema_reading
from .base import LETTER, Hub, Sample, each
from .files import Folder
from .readers import Bad, is_empty, text, texts, value
from .video import VideoChoice, by_letter, letter_of

OPTIONS = 5


class EgoSchema(VideoChoice):
    """Accuracy of the option chosen, in the subset whose answers are published."""

    name = "egoschema"
    official = staticmethod(egoschema_reading)
    files: ClassVar = {
        "questions.json": "from egoschema/EgoSchema, or the parquet file of lmms-lab/egoschema",
        "subset_answers.json": "from egoschema/EgoSchema",
        "*.mp4": "the videos, unpacked or as zips, from lmms-lab/egoschema",
    }
    parts: ClassVar = {"subset": "subset_answers.json", "full": "questions.json"}
    hub = Hub("lmms-lab/egoschema", "Subset", "test")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows = folder.json("questions.json", list, "a list of questions")
        answers = folder.json("subset_answers.json", dict, "a table of answers")

        def build(row: Any) -> Iterable[Sample]:
            name = text(row, "q_uid")
            if name in answers or self.part == "full":
                listed = [text(row, f"option {at}") for at in range(OPTIONS)]
                yield self._sample(name, name, row, listed, {"answer": answers.get(name)})

        yield from each(rows, build, "questions.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        listed = [one.partition(". ")[2] or one for one in texts(row, "option")]
        name = str(row.get("question_idx") or row["video_idx"])
        yield self._sample(name, text(row, "video_idx"), row, listed, row)

    def _sample(
        self, name: str, video: str, row: Mapping[str, Any], listed: list[str], answer: Mapping[str, Any]
    ) -> Sample:
        options = by_letter(listed)
        truth = None if is_empty(answer.get("answer")) else letter_of(answer, "answer", options)
        lines = "\n".join(f"{letter}. {one}" for letter, one in options.items())
        prompt = f"{value(row, 'question', str)}\n{lines}\n{LETTER}"
        return Sample(name, prompt, self.video(video), truth, video, {"options": options})
