"""MVBench (Li et al., CVPR 2024): twenty kinds of questions that one frame does not answer, 200 of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.letters import mvbench_reading
from .base import LETTER, Hub, Line, Sample, each
from .files import Folder
from .readers import Bad, BadRow, Row, is_empty, text, value
from .tables import hub_table, rows_of
from .video import VideoChoice, by_letter, candidates, json_parts, letter_of_text

# By kind: the folder of its videos, and that of the branch "video" of the Hub, where they are cut already.
CHARADES, CLEVRER, PERCEPTION = "star/Charades_v1_480", "clevrer/video_validation", "perception/videos"
KINDS: dict[str, tuple[str, str]] = {
    "action_sequence": (CHARADES, "star/Charades_segment"),
    "action_prediction": (CHARADES, "star/Charades_segment"),
    "action_antonym": ("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos", ""),
    "unexpected_action": ("FunQA_test/test", ""),
    "object_existence": (CLEVRER, ""),
    "object_interaction": (CHARADES, "star/Charades_segment"),
    "object_shuffle": (PERCEPTION, ""),
    "moving_direction": (CLEVRER, ""),
    "action_localization": ("sta/sta_video", "sta/sta_video_segment"),
    "scene_transition": ("scene_qa/video", ""),
    "action_count": (PERCEPTION, ""),
    "moving_count": (CLEVRER, ""),
    "moving_attribute": (CLEVRER, ""),
    "state_change": (PERCEPTION, ""),
    "fine_grained_pose": ("nturgbd", "nturgbd_convert"),
    "character_order": (PERCEPTION, ""),
    "egocentric_navigation": ("vlnqa", ""),
    "episodic_reasoning": ("tvqa/frames_fps3_hq", "tvqa/video_fps3_hq_segment"),
    "counterfactual_inference": (CLEVRER, ""),
}
CUT = "_segment"  # at the end of a folder whose videos are cut to what is asked about


class MVBench(VideoChoice):
    """Accuracy of the option chosen, over all and by kind; empty answers are left out, as lmms-eval does."""

    name = "mvbench"
    by = "kind"
    kinds = ("kind",)
    frames = 16
    official = staticmethod(mvbench_reading)
    files: ClassVar = {
        "json/": "the twenty files from OpenGVLab/MVBench",
        "*.mp4": "the videos, unpacked or as zips, from OpenGVLab/MVBench",
    }
    hub = Hub("OpenGVLab/MVBench", None, "train")
    tsvs = ("MVBench", "MVBench_MP4")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        def samples(kind: str, rows: Any) -> Iterator[Sample | Bad]:
            return each(self._of_kind(kind, rows), self.from_hub, f"{kind}.json")

        yield from json_parts(folder, KINDS, samples)

    def hub_rows(self, hub: Hub) -> Iterator[Row]:
        for kind in KINDS if hub.config is None else (hub.config,):
            yield from self._of_kind(kind, rows_of(hub_table(self.name, hub.id, kind, hub.split)))

    def _of_kind(self, kind: str, rows: Any) -> Iterator[Row]:
        if isinstance(rows, Mapping | str):
            raise BadRow(f"{kind}.json is of type {type(rows).__name__}, not a list of questions")
        for at, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise BadRow(f"row {at} of {kind} is of type {type(row).__name__}, not a table of fields")
            yield Row(row, kind=kind, number=at)

    def hub_row(self, row: Row) -> dict[str, Any]:
        kind = row["task_type"].lower().replace(" ", "_").replace("-", "_")
        bounds = {name: float(row[name]) for name in ("start", "end") if not is_empty(row.get(name))}
        self._numbers[kind] = self._numbers.get(kind, -1) + 1
        return {**row, **bounds, "kind": kind, "number": self._numbers[kind]}

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        self._numbers: dict[str, int] = {}
        yield from super().from_tsv(rows, where)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        kind, name = row["kind"], text(row, "video")
        if kind not in KINDS:
            raise BadRow(f"the field 'task_type' is {kind!r}, none of MVBench's kinds")
        options = by_letter(candidates(row.get("candidates")))
        folders = [folder for folder in KINDS[kind] if folder]
        video = self.video(*(f"{folder}/{name}" for folder in folders), between=_bounds(row))
        if any(part.endswith(CUT) for part in str(video.place).split("/")):
            video = self.video(f"{folders[-1]}/{name}")
        listed = "".join(f"({letter}) {one}\n" for letter, one in options.items())
        prompt = f"Question:{text(row, 'question')}\nOption:\n{listed}{LETTER}"
        truth = letter_of_text(text(row, "answer"), options)
        group = f"{folders[0]}/{name}"
        yield Sample(f"{kind}/{row['number']}", prompt, video, truth, group, {"kind": kind, "options": options})

    def counts(self, line: Line) -> bool:
        return bool(line["answer"])


def _bounds(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """The seconds that a question is about; most are about the whole video."""
    if row.get("start") is None or row.get("end") is None:
        return None
    start, end = (float(value(row, name, (int, float))) for name in ("start", "end"))
    if not 0 <= start <= end:
        raise BadRow(f"its part from {start} to {end} s is none")
    return start, end
