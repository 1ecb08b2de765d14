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

from .readers import Bad, BadRow, Folder, hub_rows, local_parquet

Line = Mapping[str, Any]  # one record line: id, group, answer, parsed, score, meta
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Sample:
    """One question.

    `image`: a file, its bytes, or a function that draws or fetches it, so that nothing is decoded before its turn.
    `truth`: what the scorer compares with. `group`: questions that share an image or a case and so are not
    independent. `meta`: what summing up needs beside the score; it is written into the record.
    """

    id: str
    prompt: str
    image: Path | bytes | Callable[[], Any]
    truth: Any
    group: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def load_image(self) -> Image.Image:
        """The image, RGB.

        Raises:
            VlmpruneError: it is missing or damaged.
        """
        from io import BytesIO

        from vlmprune.inputs.images import as_rgb, decoded, read_image

        image = self.image() if callable(self.image) else self.image
        if isinstance(image, Image.Image):
            return as_rgb(image, f"the image of {self.id}")
        if isinstance(image, Path):
            return read_image(image)
        if not isinstance(image, bytes):
            kind = "a text" if isinstance(image, str) else f"of type {type(image).__name__}"
            raise VlmpruneError(f"the image of {self.id} is {kind} ({image!r:.40}), no file's content; check the data")
        return decoded(BytesIO(image), f"the image of {self.id}")


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face Hub."""

    id: str
    config: str | None
    split: str


class Task:
    """Base of the tasks.

    `files`: what to put into the task's folder, and where it comes from. `hub`: where else it can be read.
    `main`: the metric of the tables, 0..1, with `units` behind it. `by`: a field of `meta` to report the score by.
    `whole`: whether a unit (a sample's `group`) counts only with all its members, as many as `meta["members"]` says.
    """

    name: ClassVar[str]
    files: ClassVar[Mapping[str, str]] = {}
    hub: ClassVar[Hub | None] = None
    max_new_tokens: ClassVar[int] = 16
    main: ClassVar[str] = "accuracy"
    whole: ClassVar[bool] = False

    by: ClassVar[str | None] = None
    scorer: ClassVar[Any] = staticmethod(exact_match)  # of an answer and the truth

    def __init__(self, *, boxes: str = "auto") -> None:
        self.boxes = boxes
        self._counted = 0

    # -- data --------------------------------------------------------------------------------------------------

    def samples(self, root: Path, *, hub: bool = False) -> Iterator[Sample | Bad]:
        """The task's questions in a fixed order, what is wrong with the data among them.

        Args:
            root: the folder that holds one folder a task. hub: read the Hugging Face Hub instead.
        Raises:
            VlmpruneError: a file that is needed is not there.
        """
        folder = Folder(root / self.name, self.name, self.files, self.hub is not None)
        if hub and self.hub is not None:
            yield from self.from_table(hub_rows(self.name, self.hub.id, self.hub.config, self.hub.split))
        elif self.hub is not None and (parquet := sorted(folder.path.glob("**/*.parquet"))):
            yield from self.from_table(local_parquet(parquet))
        else:
            yield from self.from_files(folder)

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        """Samples from the official files; here of a task that has none but parquet files, which are missing."""
        folder.file("*.parquet")
        yield from ()

    def from_table(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample | Bad]:
        """Samples from the Hub's rows."""
        yield from each(rows, self.from_hub)

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
        return self.scorer(str(parsed), sample.truth)

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
