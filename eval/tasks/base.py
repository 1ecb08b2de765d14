"""What a task is: where its data lies, what it asks, how an answer is read, scored and summed up.

A task is one file: the official files or the Hub's rows become samples; everything around that (missing files, bad
rows, resuming, standard errors) is shared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vlmprune.accounting.scores import exact_match
from vlmprune.errors import VlmpruneError

from .files import Folder
from .readers import Bad, BadRow, Row
from .source import HERE, Source, found_in
from .tables import Hub as Hub
from .tables import TablePart, hub_table, local_table, rows_of
from .tsv import tsv_rows
from .video_files import DrawnVideo, VideoFile

Line = Mapping[str, Any]  # one record line: id, group, answer, parsed, score, meta
OFFICIAL, PERSON = READINGS = ("official", "person")  # how answers are read: see eval/README.md, Readings
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Sample:
    """One question.

    `image`: a file, its bytes, or a function that draws or fetches it, so that nothing is decoded before its turn; or
    a video.
    `truth`: what the scorer compares with. `group`: questions that share an image or a case and so are not
    independent. `meta`: what summing up needs beside the score; it is written into the record.
    """

    id: str
    prompt: str
    image: Path | bytes | Callable[[], Any] | VideoFile | DrawnVideo
    truth: Any
    group: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def load(self, frames: int | None = None) -> Any:
        """The image, or the clip with so many frames at most.

        Raises:
            VlmpruneError: it is missing or damaged.
        """
        return self.image.read(frames) if isinstance(self.image, VideoFile | DrawnVideo) else self.load_image()

    def load_image(self) -> Image.Image:
        """The image, RGB.

        Raises:
            VlmpruneError: it is missing or damaged.
        """
        from io import BytesIO

        from vlmprune.inputs.images import OWN_FORMATS, as_rgb, decoded, read_image

        image: Any = self.image() if callable(self.image) else self.image
        if isinstance(image, Image.Image):
            return as_rgb(image, f"the image of {self.id}")
        if isinstance(image, Path):
            return read_image(image)
        if not isinstance(image, bytes):
            kind = "a text" if isinstance(image, str) else f"of type {type(image).__name__}"
            raise VlmpruneError(f"the image of {self.id} is {kind} ({image!r:.40}), no file's content; check the data")
        return decoded(BytesIO(image), f"the image of {self.id}", formats=OWN_FORMATS)


class Task:
    """Base of the tasks.

    `files`: what to put into the task's folder, and where it comes from. `hub`: where else it can be read. `tsvs`: its
    names in VLMEvalKit, the one that is read where several lie there first.
    `main`: the metric of the tables, 0..1, with `units` behind it. `by`: a field of `meta` to report the score by.
    `whole`: whether a unit (a sample's `group`) counts only with all its members, as many as `meta["members"]` says.
    `frames`: of a task about videos, how many are shown unless the command line says another number; None: images.
    `parts`: files of official splits by name, where `--split` chooses among them.
    """

    name: ClassVar[str]
    files: ClassVar[Mapping[str, str]] = {}
    hub: ClassVar[Hub | None] = None
    tsvs: ClassVar[tuple[str, ...]] = ()
    max_new_tokens: ClassVar[int] = 16
    main: ClassVar[str] = "accuracy"
    whole: ClassVar[bool] = False
    frames: ClassVar[int | None] = None
    parts: ClassVar[Mapping[str, str]] = {}

    by: ClassVar[str | None] = None
    scorer: ClassVar[Any] = staticmethod(exact_match)  # of an answer and the truth
    by_person: ClassVar[Any] = None  # the same where answers are read as a person would, if it differs

    def __init__(self, *, boxes: str = "auto", reading: str = OFFICIAL) -> None:
        self.boxes, self.reading = boxes, reading
        self.seen_size: Callable[[tuple[int, int]], tuple[int, int]] = lambda size: size  # in which a model's boxes are
        self.source = ""  # what was read, in words
        self.place = Folder(Path(), self.name)  # where it was
        self.part: str | None = None  # the official split asked for, one of `parts`
        self._counted = 0

    # -- data --------------------------------------------------------------------------------------------------

    def samples(self, root: Path, source: Source = HERE) -> Iterator[Sample | Bad]:
        """The task's questions in a fixed order, what is wrong with the data among them.

        Args:
            root: the folder that holds one folder per task. source: where else the data is, and which part of it.
        Raises:
            VlmpruneError: a file that is needed is not there, or it is not said which of several parts is meant.
        """
        self._counted = 0
        found = found_in(self, root, source)
        self.source, self.place, self.part = found.said, found.folder, found.part
        yield from found.bad
        if found.hub is not None:
            yield from self.from_table(self.hub_rows(found.hub))
        elif found.parquet:
            yield from self.from_table(self.parquet_rows(found.parquet, found.every))
        elif found.tsv is not None:
            yield from self.from_tsv(self.tsv_rows(found.tsv), found.tsv.name)
        else:
            yield from self.from_files(found.folder)

    def hub_rows(self, hub: Hub) -> Iterator[Row]:
        """The rows of the Hub's table, each with its `image` as something to call."""
        yield from rows_of(hub_table(self.name, hub.id, hub.config, hub.split))

    def parquet_rows(self, parts: Sequence[TablePart], every: Sequence[TablePart]) -> Iterator[Row]:
        """The rows of the chosen parquet files; `every` are all that lie in the folder."""
        yield from rows_of(local_table([part.path for part in parts]))

    def tsv_rows(self, path: Path) -> Iterator[Row | Bad]:
        """The rows of a TSV of VLMEvalKit, with their images."""
        yield from tsv_rows(path)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        """Samples from the official files; here of a task that has none but parquet files, which are missing."""
        folder.file("*.parquet")
        yield from ()

    def from_table(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample | Bad]:
        """Samples from the Hub's rows."""
        yield from each(rows, self.from_hub)

    @classmethod
    def reads_tsv(cls) -> bool:
        """Whether it reads a table in VLMEvalKit's form."""
        return (cls.hub_row, cls.from_tsv) != (Task.hub_row, Task.from_tsv)

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        """Samples from VLMEvalKit's rows, each read as the row of the Hub's table that says the same."""
        yield from each(rows, lambda row: self.from_hub(Row(self.hub_row(row), image=row["image"])), where)

    def hub_row(self, row: Row) -> dict[str, Any]:
        """The columns of the Hub's table for a row of VLMEvalKit's."""
        raise BadRow(f"the task {self.name!r} reads no TSV files")

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        """The samples of one row of the Hub's table; its `image` comes as something `Sample.image` takes."""
        raise NotImplementedError

    def next_row(self) -> str:
        """A name for the next row of a Hub's table that gives its rows none."""
        self._counted += 1
        return f"row {self._counted}"

    # -- answers -----------------------------------------------------------------------------------------------

    def read(self, sample: Sample, answer: str) -> Any:
        """The answer as the scorer sees it, JSON-serialisable; None where it cannot be read."""
        return answer

    def score(self, sample: Sample, parsed: Any) -> float | None:
        """0..1, here what `scorer` makes of answer and truth; None where it is given elsewhere (a judge model)."""
        scorer = self.by_person if self.reading == PERSON and self.by_person is not None else self.scorer
        return scorer(str(parsed), sample.truth)

    # -- sums --------------------------------------------------------------------------------------------------

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        """Per independent unit the numerator and denominator of `main`, which is the ratio of their sums."""
        out: dict[str, tuple[float, float]] = {}
        for line in lines:
            above, below = out.get(line["group"], (0.0, 0.0))
            out[line["group"]] = (above + line["score"], below + 1)
        return out

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        """Every number the benchmark reports, `main` among them; `lines` are scored ones, at least one."""
        return {self.main: mean(line["score"] for line in lines), **(mean_by(lines, self.by) if self.by else {})}


def each(rows: Iterable[Any], build: Callable[[Any], Iterable[Sample]], where: str = "row") -> Iterator[Sample | Bad]:
    """The samples of every row; a row that cannot be read becomes a `Bad` that names it.

    So does a file whose reading fails (`rows` raises); what was read before stays.
    """
    number, source = 0, iter(rows)
    while True:
        try:
            row = next(source)
        except StopIteration:
            return
        except BadRow as error:
            yield Bad(where, str(error))
            return
        try:
            if isinstance(row, Bad):
                yield row
            else:
                yield from build(row)
        except BadRow as error:
            yield Bad(f"{where} {number}", str(error))
        number += 1


def incomplete(lines: Iterable[Line], every: Iterable[Line] = ()) -> dict[str, list[int]]:
    """Units of which not every member was answered: [answered, wanted] by name.

    Where all must be right, a unit that lacks a member says nothing: what is left is easier than the whole.

    Args:
        lines: answered ones. every: all that there are, where units without any answer shall be found too.
    """
    lines = list(lines)
    found, wanted = Counter(line["group"] for line in lines), dict[str, int]()
    for line in (*every, *lines):
        wanted[line["group"]] = max(wanted.get(line["group"], 0), line["meta"].get("members", 0))
    return {group: [found[group], count] for group, count in wanted.items() if found[group] < count}


def whole_units(lines: Sequence[Line]) -> list[Line]:
    """The lines of complete units."""
    missing = incomplete(lines)
    return [line for line in lines if line["group"] not in missing]


def mean(values: Iterable[float]) -> float:
    """The mean, 0 of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0


def by(lines: Sequence[Line], key: str) -> dict[str, list[Line]]:
    """Lines by a value of their `meta`, sorted by it."""
    out: dict[str, list[Line]] = {}
    for line in lines:
        out.setdefault(str(line["meta"].get(key)), []).append(line)
    return dict(sorted(out.items()))


def mean_by(lines: Sequence[Line], key: str) -> dict[str, float]:
    """Mean score by a value of `meta`, as metrics named `key/value`."""
    return {f"{key}/{value}": mean(line["score"] for line in part) for value, part in by(lines, key).items()}


def short(question: str) -> str:
    """The prompt of short-answer benchmarks (LLaVA-1.5's, which all papers on pruning use)."""
    return f"{question}\n{SHORT}"
