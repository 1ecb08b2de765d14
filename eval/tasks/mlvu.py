"""MLVU (Zhou et al., CVPR 2025), the multiple choice of its dev set: seven tasks on videos of 3 minutes to 2 hours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.letters import video_mme_reading
from .base import Hub, Sample, each
from .choice import check_answer
from .files import Folder
from .readers import Bad, Row, text
from .video import MeanOverKinds, by_letter, candidates, json_parts, letter_of_text

FILES = ("1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning")
PROMPT = "{}\nOnly give the best option.\nBest option: ("


class MLVU(MeanOverKinds):
    """Mean over the tasks of the accuracy of the option chosen (M-Avg)."""

    name = "mlvu"
    by = "task"
    kinds = ()
    official = staticmethod(video_mme_reading)
    files: ClassVar = {
        "json/": "from MLVU of MLVU/MVLU: 1_plotQA.json and so on; or the parquet file of sy1998/MLVU_dev",
        "*.mp4": "the videos from MLVU/MVLU",
    }
    hub = Hub("sy1998/MLVU_dev", None, "test")
    tsvs = ("MLVU_MCQ",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        yield from json_parts(folder, FILES, self._of_file)

    def _of_file(self, name: str, rows: Any) -> Iterator[Sample | Bad]:
        def build(row: Any) -> Iterable[Sample]:
            yield self._sample(row, name.partition("_")[2], text(row, "video"), name)

        return each(rows, build, f"{name}.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        name = row.get("video_name") or text(row, "video")
        yield self._sample(row, str(row.get("task_type")), str(name), None)

    def _sample(self, row: Mapping[str, Any], task: str, video: str, folder: str | None) -> Sample:
        texts = candidates(row.get("candidates"))
        options = by_letter(texts)
        question, answer = text(row, "question"), text(row, "answer")
        if not re.search(r"^\(A\) ", question, re.MULTILINE):  # the Hub's questions have their options inside
            question = "\n".join([question, *(f"({letter}) {one}" for letter, one in options.items())])
        truth = answer if answer in options else letter_of_text(answer, options)
        check_answer(truth, options)
        place = self.video(*([f"{folder}/{video}"] if folder else []), video)
        meta = {"task": task, "options": options}
        return Sample(self.next_row(), PROMPT.format(question), place, truth, video, meta)

    def hub_row(self, row: Row) -> dict[str, Any]:
        return dict(row)
