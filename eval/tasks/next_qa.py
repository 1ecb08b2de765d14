"""NExT-QA (Xiao et al., CVPR 2021), multiple choice: why, how and when things happen in home videos."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from ..scorers.letters import mmmu_reading
from ..scorers.options import listed
from .base import LETTER, Hub, Sample, each
from .files import Folder
from .readers import Bad, BadRow, number, read_tsv, value
from .video import VideoChoice, by_letter, letter_of

TYPES = {"CW": "why", "CH": "how", "TN": "before and after", "TP": "before and after", "TC": "when", "DC": "count",
         "DL": "location", "DO": "other"}  # fmt: skip
FAMILIES = {"C": "causal", "T": "temporal", "D": "descriptive"}


class NExTQA(VideoChoice):
    """Accuracy of the option chosen, over all, by type and by family of types, as its script groups them."""

    name = "next-qa"
    by = "family"
    kinds = ("family", "type")
    frames = 16
    draws = True
    official = staticmethod(mmmu_reading)
    files: ClassVar = {
        "test.csv": "from dataset/nextqa of doc-doc/NExT-QA, or the parquet file of lmms-lab/NExTQA",
        "*.mp4": "the videos: NExTVideo.zip, or VidOR's, whose names are in map_vid_vidorID.json",
    }
    parts: ClassVar = {"test": "test.csv", "val": "val.csv"}
    hub = Hub("lmms-lab/NExTQA", "MC", "test")

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        name = self.parts[self.part or "test"]
        found = folder.first("map_vid_vidorID.json")
        vidor = folder.json(found, dict, "a table of names") if found else {}
        rows = read_tsv(folder.file(name), ",")
        yield from each(rows, lambda row: self._samples(row, vidor.get(str(row.get("video")))), name)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        return self._samples(row, None)

    def _samples(self, row: Mapping[str, Any], vidor: str | None) -> Iterable[Sample]:
        cells = [row.get(f"a{at}") for at in range(5)]
        if any(cell is None for cell in cells):
            raise BadRow("one of the fields 'a0' to 'a4' is missing")
        options = by_letter([str(cell).strip() for cell in cells])
        kind = str(value(row, "type", str))
        if kind not in TYPES:
            raise BadRow(f"the field 'type' is {kind!r}, none of {', '.join(TYPES)}")
        video = str(value(row, "video", (str, int)))
        question = str(value(row, "question", str)).strip()
        meta = {"type": TYPES[kind], "family": FAMILIES[kind[0]], "options": options}
        yield Sample(
            f"{video}_{number(row, 'qid')}", f"{question}\n{listed(options)}\n{LETTER}",
            self.video(video, *([vidor] if vidor else [])), letter_of(row, "answer", options), video, meta,
        )  # fmt: skip
