"""Base of the tasks about videos: multiple choice, standard errors clustered by video."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..scorers.options import LETTERS
from .base import PERSON, Line, Sample, by, each, mean, mean_by
from .choice import MultipleChoice
from .files import Folder
from .readers import Bad, BadRow, Row, number, read_json, read_tsv, several
from .video_files import VideoFile, Videos

DRAWN = "drawn "  # before a letter that the official script draws where it reads none


class VideoChoice(MultipleChoice):
    """Accuracy of the option chosen. A sample's `group` is its video; `truth` is None where no answer is published.

    `kinds`: fields of `meta` to report the score by. `draws`: whether the official script draws a letter where it can
    read none; here by the question's id, so that it is the same in every run.
    """

    frames = 32
    kinds: ClassVar[tuple[str, ...]] = ()
    draws: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._videos: Videos | None = None

    # -- data --------------------------------------------------------------------------------------------------

    def tsv_rows(self, path: Path) -> Iterator[Row | Bad]:
        yield from read_tsv(path)

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        yield from each(rows, lambda row: self.from_hub(Row(self.hub_row(row))), where)

    def video(self, *names: str, **options: Any) -> VideoFile:
        """The first of these videos that is there.

        Raises:
            VlmpruneError: there are no videos. BadRow: none of these is there.
        """
        if self._videos is None or self._videos.place is not self.place:
            self._videos = Videos(self.place)
        return VideoFile(self._videos.find(*names), **options)

    # -- answers -----------------------------------------------------------------------------------------------

    def read(self, sample: Sample, answer: str) -> str | None:
        found = super().read(sample, answer)
        if found is None and self.draws and self.reading != PERSON:
            return DRAWN + random.Random(sample.id).choice(sorted(self.options(sample)))
        return found

    def score(self, sample: Sample, parsed: Any) -> float | None:  # type: ignore[override]  # None without a truth
        if sample.truth is None:
            return None
        return float(str(parsed).removeprefix(DRAWN) == sample.truth)

    # -- sums --------------------------------------------------------------------------------------------------

    def counts(self, line: Line) -> bool:
        """Whether the official script counts an answer at all."""
        return True

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        counted = super().units([line for line in lines if self._counts(line)])
        return {line["group"]: (0.0, 0.0) for line in lines} | counted

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        counted = [line for line in lines if self._counts(line)]
        out = {self.main: mean(line["score"] for line in counted), "accuracy_of_all": mean(x["score"] for x in lines)}
        for kind in self.kinds:
            out |= mean_by(counted, kind)
        out["unreadable"] = mean(line["parsed"] is None or line["parsed"].startswith(DRAWN) for line in lines)
        return out

    def _counts(self, line: Line) -> bool:
        return self.reading == PERSON or self.counts(line)


class MeanOverKinds(VideoChoice):
    """The main number is the mean over the values of `by`, each the mean of its questions."""

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        out: dict[str, tuple[float, float]] = {}
        parts = by(lines, str(self.by))
        for part in parts.values():
            weight = len(lines) / (len(part) * len(parts))  # they add up to the number of questions
            for line in part:
                above, below = out.get(line["group"], (0.0, 0.0))
                out[line["group"]] = (above + weight * line["score"], below + weight)
        return out

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        parts = mean_by(lines, str(self.by))
        return {**super().metrics(lines), **parts, self.main: mean(parts.values())}


def json_parts(
    folder: Folder, names: Iterable[str], samples: Callable[[str, Any], Iterator[Sample | Bad]]
) -> Iterator[Sample | Bad]:
    """What `samples` makes of the names and contents of the files in the folder `json`; those that are missing are bad.

    Raises:
        VlmpruneError: the folder is not there. BadRow: as `read_json`.
    """
    place = folder.folder("json")
    for name in names:
        path = place / f"{name}.json"
        if path.is_file():
            yield from samples(name, read_json(path))
        else:
            yield Bad(f"json/{name}.json", "is not there")


def candidates(cell: Any) -> list[str]:
    """The options of a row: a list, or what a table of text makes of one.

    Raises:
        BadRow: there are none, or more than letters.
    """
    found = several(cell) if cell is not None else []
    if not 1 < len(found) <= len(LETTERS):
        raise BadRow(f"{len(found)} options where 2 to {len(LETTERS)} were expected")
    return found


def by_letter(texts: Sequence[str]) -> dict[str, str]:
    """Options by letter, "A" on."""
    return dict(zip(LETTERS, texts, strict=False))


def letter_of(row: Mapping[str, Any], name: str, options: Mapping[str, str]) -> str:
    """The letter of the right option, which a row gives by its number.

    Raises:
        BadRow: it is none of the options'.
    """
    right = number(row, name)
    if not 0 <= right < len(options):
        raise BadRow(f"the field {name!r} is {right}, but there are {len(options)} options")
    return list(options)[right]


def letter_of_text(answer: str, options: Mapping[str, str]) -> str:
    """The letter of the option that says the same.

    Raises:
        BadRow: none does.
    """
    found = next((letter for letter, text in options.items() if text == answer), None)
    if found is None:
        raise BadRow(f"the field 'answer' is {answer!r}, which is none of the options")
    return found
