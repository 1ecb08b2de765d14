"""MME (Fu et al., 2023): two yes-or-no questions per image in fourteen subtasks; accuracy plus accuracy+."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..scorers.yes_no import mme_reading, mme_scores
from .base import SHORT, Hub, Line, Sample, Task, by, each, mean, whole_units
from .files import Folder, Place
from .readers import Bad, BadRow, Row, read_text, text

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
OFFICIAL_END = "Please answer yes or no."
ENDINGS = (".jpg", ".png", ".jpeg")
FULL_SCORE = 200  # of a subtask
QUESTIONS = 2  # per image, both of which must be right for accuracy+


class MME(Task):
    """Main number: the official total as a fraction of what the subtasks present can give (2,800 for all fourteen).

    An image of which one of the two questions lacks is left out of every number.
    """

    name = "mme"
    whole = True
    main = "score_share"
    files: ClassVar = {"MME_Benchmark_release_version/": "MME's release: one folder per subtask, images and .txt files"}
    hub = Hub("lmms-lab/MME", None, "test")
    tsvs = ("MME",)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._asked: dict[str, list[str]] = {}  # by image

    def from_files(self, folder: Folder) -> Iterator[Sample | Bad]:
        self._asked = {}
        release = folder.folder("MME_Benchmark_release_version")
        if (release / "MME_Benchmark").is_dir():  # the second release has a folder more
            release = release / "MME_Benchmark"
        for subtask in (*PERCEPTION, *COGNITION):
            texts: list[Place] = sorted((release / subtask).glob("**/*.txt"), key=str)
            if not texts:
                yield Bad(f"MME_Benchmark_release_version/{subtask}", "no .txt file with questions")
            for path in texts:
                yield from each(
                    self._rows(path), self._build(subtask, path, release / subtask), f"{subtask}/{path.name}"
                )

    def _rows(self, path: Place) -> Iterator[list[str]]:
        for line in read_text(path).replace("\r", "").split("\n"):
            if line.strip():
                yield line.split("\t")

    def _build(self, subtask: str, path: Place, folder: Place) -> Any:
        # Some subtasks keep images and questions apart, in images/ and questions_answers_YN/.
        places = [place / (path.stem + ending) for place in (path.parent, folder / "images") for ending in ENDINGS]
        image = next((place for place in places if place.exists()), places[0])

        def build(row: list[str]) -> Iterable[Sample]:
            if len(row) != 2:
                raise BadRow(f"{len(row)} columns where a question and its answer were expected")
            yield self._sample(subtask, f"{subtask}/{path.stem}", row[0], row[1], image)

        return build

    def from_table(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample | Bad]:
        self._asked = {}
        yield from super().from_table(rows)

    def from_hub(self, row: Mapping[str, Any]) -> Iterable[Sample]:
        category, group = text(row, "category"), text(row, "question_id")
        # Its release counts images anew in every subtask, and the Hub's ids name the subtask too.
        if not group.startswith(f"{category}/"):
            group = f"{category}/{group}"
        yield self._sample(category, group, text(row, "question"), text(row, "answer"), row["image"])

    def from_tsv(self, rows: Iterable[Row | Bad], where: str) -> Iterator[Sample | Bad]:
        self._asked = {}
        yield from super().from_tsv(rows, where)

    def hub_row(self, row: Row) -> dict[str, Any]:
        return {**row, "question_id": row["image_name"]}

    def _sample(self, subtask: str, group: str, question: str, answer: str, image: Any) -> Sample:
        truth = answer.strip().lower()
        if truth not in ("yes", "no"):
            raise BadRow(f"the answer is {answer!r}, not Yes or No")
        prompt = f"{question.removesuffix(OFFICIAL_END).strip()}\n{SHORT}"
        asked = self._asked.setdefault(group, [])
        if prompt in asked:
            raise BadRow(f"{group!r} was asked this before; the first time counts")
        asked.append(prompt)
        meta = {"subtask": subtask, "members": QUESTIONS}
        return Sample(f"{group}/{len(asked)}", prompt, image, truth, group, meta)

    def read(self, sample: Sample, answer: str) -> str:
        return mme_reading(answer)

    def units(self, lines: Sequence[Line]) -> dict[str, tuple[float, float]]:
        """An image's part of the total: its mean accuracy and whether all is right, each over the subtask's size.

        The subtask's accuracy is a mean over questions; official subtasks have two per image, where both means agree.
        """
        out = {}
        lines = whole_units(lines)
        subtasks = by(lines, "subtask")
        images = len({line["group"] for line in lines})
        for part in subtasks.values():
            groups: dict[str, list[float]] = {}
            for line in part:
                groups.setdefault(line["group"], []).append(line["score"])
            for group, scores in groups.items():
                points = 100 * sum(scores) / len(part) + 100 * all(scores) / len(groups)
                out[group] = (points * images / (FULL_SCORE * len(subtasks)), 1.0)
        return out

    def metrics(self, lines: Sequence[Line]) -> dict[str, float]:
        out: dict[str, float] = {}
        lines = whole_units(lines)
        if not lines:
            return out
        for subtask, part in by(lines, "subtask").items():
            found = mme_scores([line["score"] == 1 for line in part], [line["group"] for line in part])
            out |= {f"{name}/{subtask}": number for name, number in found.items()}
        totals = {k.removeprefix("score/"): v for k, v in out.items() if k.startswith("score/")}
        return {
            "score_share": mean(totals.values()) / FULL_SCORE,
            "perception": sum(v for k, v in totals.items() if k in PERCEPTION),
            "cognition": sum(v for k, v in totals.items() if k in COGNITION),
            "unreadable": mean(line["parsed"] == "" for line in lines),
            **out,
        }
