"""Video-MME (Fu et al., CVPR 2025): 900 videos of 11 seconds to an hour, three questions each, without subtitles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.letters import video_mme_reading
from .base import Hub, Line, Sample, each
from .choice import check_answer
from .files import Folder
from .readers import Bad, Row, text, texts, value
from .video import VideoChoice, by_letter, candidates

# Its README's prompt where no subtitles are given.
PROMPT = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option.\n{}\nThe best answer is:"
)


class VideoMME(VideoChoice):
    """Accuracy over the answers in which the script finds a letter, over all and by duration, domain and type."""

    name = "video-mme"
    by = "duration"
    kinds = ("duration", "domain", "task_type")
    official = staticmethod(video_mme_reading)
    files: ClassVar = {
        "*.mp4": "the videos, unpacked or as zips, from lmms-lab/Video-MME",
        "Video-MME.json": "the annotations as its README shows them, or the parquet file of lmms-lab/Video-MME",
    }
    hub = Hub("lmms-lab/Video-MME", "videomme", "test")
    tsvs = ("Video-MME",)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        rows = folder.json("Video-MME.json", list, "a list of videos")

        def build(video: Any) -> Iterable[Sample]:
            more = {"duration": "duration_category", "domain": "video_category", "sub_category": "video_subcategory"}
            named = {ours: text(video, theirs) for ours, theirs in more.items()} | {"videoID": _video_of(video)}
            for question in value(video, "questions", list):
                yield from self.from_hub({**question, **named, "options": texts(question, "choices")})

        yield from each(rows, build, "Video-MME.json")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        listed = candidates(row.get("options"))
        options = {letter: one.removeprefix(f"{letter}.").strip() for letter, one in by_letter(listed).items()}
        answer, video = text(row, "answer"), text(row, "videoID")
        check_answer(answer, options)
        prompt = PROMPT.format("\n".join([text(row, "question"), *listed]))
        meta = {name: row.get(name) for name in ("duration", "domain", "sub_category", "task_type")}
        name = str(value(row, "question_id", (str, int)))
        yield Sample(name, prompt, self.video(video), answer, video, {**meta, "options": options})

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "videoID": row["video"], "question_id": row["index"], "options": row["candidates"]}

    def counts(self, line: Line) -> bool:
        return line["parsed"] is not None


def _video_of(video: Mapping[str, Any]) -> str:
    """A video's file: the id in its address at YouTube."""
    return text(video, "url").rpartition("=")[2].rpartition("/")[2] if video.get("url") else text(video, "video_id")
