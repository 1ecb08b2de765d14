"""LongVideoBench (Wu et al., NeurIPS 2024): questions that refer to a place in videos of 8 seconds to an hour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.letters import long_video_bench_reading
from ..scorers.options import listed
from .base import LETTER, Hub, Sample, each
from .files import Folder
from .readers import Bad, Row, is_empty, text, value
from .video import VideoChoice, by_letter, candidates, letter_of

NO_OPTION = "N/A"  # in a column of the table


class LongVideoBench(VideoChoice):
    """Accuracy of the option chosen, over all, by duration and by category; without subtitles."""

    name = "longvideobench"
    by = "duration_group"
    kinds = ("duration_group", "question_category")
    draws = True
    official = staticmethod(long_video_bench_reading)
    max_new_tokens = 32
    files: ClassVar = {
        "lvb_val.json": "from longvideobench/LongVideoBench, or its parquet files",
        "*.mp4": "the videos: its videos.tar.part.* joined and unpacked",
    }
    parts: ClassVar = {"validation": "lvb_val.json", "test": "lvb_test_wo_gt.json"}
    hub = Hub("longvideobench/LongVideoBench", None, "validation")
    tsvs = ("LongVideoBench",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        name = self.parts[self.part or "validation"]
        yield from each(folder.json(name, list, "a list of questions"), self.from_hub, name)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        if row.get("candidates") is None:
            cells = [row.get(f"option{at}") for at in range(5)]
            texts = [str(cell) for cell in cells if not is_empty(cell) and cell != NO_OPTION]
        else:
            texts = candidates(row["candidates"])
        options = by_letter(texts)
        right = row.get("correct_choice")
        truth = None if right is None or str(right) == "-1" else letter_of(row, "correct_choice", options)
        prompt = f"{text(row, 'question')}\n{listed(options)}\n{LETTER}"
        video = self.video(text(row, "video_path"))
        meta = {kind: row.get(kind) for kind in ("duration_group", "question_category", "topic_category")}
        group = str(row.get("video_id") or row["video_path"])
        yield Sample(str(value(row, "id", (str, int))), prompt, video, truth, group, {**meta, "options": options})

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "duration_group": int(row["duration_group"])}
