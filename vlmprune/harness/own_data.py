"""A user's own questions, from JSONL, CSV or Python objects: all of them are checked before a model is loaded."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import VlmpruneError, nearest
from .own_files import BadQuestionError, file_rows
from .own_media import MediaChecks, Medium
from .scorers import CHOICE, LETTERS, SCORERS, folded, numbers_in, read_choice

NAMES = ("exact", CHOICE, *(name for name in SCORERS if name != "exact"))
MEDIA = ("image", "images", "video", "videos")
SAMPLING = ("frames", "fps")
FIELDS = (*MEDIA, *SAMPLING, "question", "answers", "answer", "choices", "scorer")
LETTER = "Answer with the option's letter from the given choices directly."  # as LLaVA-1.5's evaluation asks
FAULTS_NAMED = 5  # in a message


@dataclass(frozen=True)
class OwnQuestion:
    """One question: `where` it stands, its images and clips, and the right answers, none where nobody knows any.

    `options`: choices by letter, empty where there are none.
    """

    where: str
    media: tuple[Medium, ...]
    question: str
    answers: tuple[str, ...]
    scorer: str = "exact"
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def digests(self) -> list[str]:
        """Of the content of each image and clip, by which questions share one."""
        return [one.digest for one in self.media]

    @property
    def prompt(self) -> str:
        """What the model is asked; choices stand below the question, one a line."""
        if not self.options:
            return self.question
        return "\n".join([self.question, *(f"{letter}. {text}" for letter, text in self.options.items()), LETTER])

    def opened(self) -> list[Any]:
        """The images and clips, read from their files."""
        return [one.opened() for one in self.media]

    def score(self, answer: str) -> float:
        """How right an answer is, 0..1."""
        if self.scorer == CHOICE:
            return float(read_choice(answer, self.options) in self.answers)
        return SCORERS[self.scorer](answer, self.answers)


def read_questions(data: Any, *, scorer: str | None = None, frames: int | None = None) -> list[OwnQuestion]:
    """All questions of a file or of a list.

    Args:
        data: the path of a JSONL or CSV file, or (image, question, answers) tuples or dicts; paths of images and clips
            are relative to the file's folder, in a list to the working directory. scorer: of questions that name none.
        frames: how many of each clip are taken where its question does not say.
    Raises:
        VlmpruneError: no questions, or one that cannot be asked or scored: where it stands and why; `frames` without
            a clip.
    """
    from ..inputs.video import check_sampling

    check_sampling(frames, None)
    if scorer is not None:
        check_scorer(scorer)
    name, folder = "data", Path()
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        name, folder = path.name, path.parent
        rows: Iterable[tuple[str, Any]] = file_rows(path)
    elif isinstance(data, Mapping | bytes) or not isinstance(data, Iterable):
        raise VlmpruneError(
            f"data must be a JSONL or CSV path, (image, question, answers) tuples or dicts, got {data!r:.60}"
        )
    else:
        rows = ((f"[{number}]", row) for number, row in enumerate(data))
    found, faults = [], []
    checks = MediaChecks(folder, frames)
    for where, row in rows:
        try:
            found.append(question_of(where, row, checks, scorer))
        except BadQuestionError as error:
            faults.append((where, str(error)))
    if faults:
        (where, why), *others = faults
        named = ", ".join(one for one, _ in others[:FAULTS_NAMED])
        more = f" and {len(others) - FAULTS_NAMED} more" if len(others) > FAULTS_NAMED else ""
        also = f" (bad too: {named}{more})" if others else ""
        raise VlmpruneError(f"{name}{'' if where.startswith('[') else ', '}{where}: {why}{also}")
    if not found:
        raise VlmpruneError(f"{name!r} holds no questions; give one a line, with image, question and answers")
    if frames is not None and not checks.clips_seen:
        raise VlmpruneError(f"frames={frames} is about videos, and no question of {name!r} has one; leave it out")
    return found


def check_scorer(name: Any) -> str:
    """The name of a scorer that exists."""
    if name not in NAMES:
        raise BadQuestionError(f"there is no scorer {name!r:.40}; {nearest(str(name), NAMES)}")
    return str(name)


def question_of(where: str, row: Any, checks: MediaChecks, scorer: str | None) -> OwnQuestion:
    """The question of one row.

    Raises:
        BadQuestionError: what is wrong with it.
    """
    if isinstance(row, BadQuestionError):
        raise row
    if isinstance(row, tuple | list) and not where.startswith("line"):
        if len(row) != 3:
            raise BadQuestionError(f"{row!r:.60} has {len(row)} parts; make it (image, question, answers)")
        row = dict(zip(("image", "question", "answers"), row, strict=True))
    if not isinstance(row, Mapping):
        raise BadQuestionError(f"{row!r:.60} is {type(row).__name__}, not an object with image, question and answers")
    names = [str(name).strip().lower() for name, value in row.items() if value is not None]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadQuestionError(f"the field {twice!r} is there twice, in other letters; leave one out")
    row = {str(name).strip().lower(): value for name, value in row.items() if value is not None}
    # Exported tables have an empty text where there is no image or no video.
    row = {name: one for name, one in row.items() if name not in MEDIA or not isinstance(one, str) or one.strip()}
    if not any(name in row for name in MEDIA[2:]):
        value(row, *MEDIA[:2])
    question = text(value(row, "question"), "question")
    answers = [answer(one) for one in listed(value(row, "answers", "answer"), "answers")]
    choices = choices_of(row["choices"]) if "choices" in row else []
    for name in row:
        close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.8)
        if close and name not in FIELDS:
            raise BadQuestionError(f"the field {name!r} is unknown; did you mean {close[0]!r}?")
    named = check_scorer(row.get("scorer") or scorer or (CHOICE if choices else "exact"))
    options = lettered(choices)
    if (named == CHOICE) != bool(choices):
        if choices and "scorer" in row:
            raise BadQuestionError(f"the scorer {named!r} does not go with choices; leave it out")
        if not choices:
            raise BadQuestionError(f"the scorer {CHOICE!r} needs choices; list them in a field 'choices'")
        named = CHOICE
    if options:
        answers = [letter_of(one, options) for one in answers]
    if named == "number" and (odd := next((one for one in answers if len(numbers_in(one)) != 1), None)) is not None:
        raise BadQuestionError(f"the answer {odd!r:.40} is not one number, which the scorer 'number' needs")
    media = media_of(row, checks)  # last, since it takes longest
    return OwnQuestion(where, tuple(media), question, tuple(answers), named, options)


def media_of(row: Mapping[str, Any], checks: MediaChecks) -> list[Medium]:
    """The images of a row and behind them its clips."""
    sampling = {name: number_of(row[name], name) for name in SAMPLING if name in row}
    clips = any(name in row for name in MEDIA[2:])
    before = checks.clips_seen
    media: list[Medium] = []
    if not clips or any(name in row for name in MEDIA[:2]):
        media += checks.images(listed(value(row, *MEDIA[:2]), "image"), **sampling)
    if clips:
        media += checks.clips(value(row, *MEDIA[2:]), **sampling)
    if sampling and checks.clips_seen == before:
        raise BadQuestionError(f"{next(iter(sampling))} is about videos, and the question has none; leave it out")
    return media


def number_of(found: Any, name: str) -> Any:
    """A number, which a table holds as text; what it must be is checked where a clip is read."""
    if not isinstance(found, str):
        return found
    try:
        return int(found) if found.strip().isdigit() else float(found)
    except ValueError:
        raise BadQuestionError(f"{name} is {found!r:.40}, which is no number; write one, or leave it out") from None


def value(row: Mapping[str, Any], *names: str) -> Any:
    """A field that must be there, under one of its names."""
    there = [name for name in names if name in row]
    if len(there) > 1:
        raise BadQuestionError(f"there are both {there[0]!r} and {there[1]!r}; leave one out")
    if not there:
        known = ", ".join(map(repr, row)) or "nothing"
        raise BadQuestionError(f"the field {names[0]!r} is missing; there is {known:.80}")
    return row[there[0]]


def listed(found: Any, name: str) -> list[Any]:
    """One value or several, at least one."""
    several = list(found) if isinstance(found, list | tuple) else [found]
    if not several:
        raise BadQuestionError(f"{name} is an empty list; give at least one")
    return several


def text(found: Any, name: str) -> str:
    """A text with something in it, and nothing that cannot be written."""
    if isinstance(found, int | float) and not isinstance(found, bool) and name != "question":
        found = as_text(found)
    if not isinstance(found, str):
        raise BadQuestionError(f"{name} is {found!r:.60}, which is no text; put it in quotes")
    if not found.strip():
        raise BadQuestionError(f"{name} is empty; write something there")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise BadQuestionError(
            f"{name} holds half a surrogate pair ({found!r:.40}); write the character whole"
        ) from None
    return found


def answer(found: Any) -> str:
    """A right answer."""
    return text(found, "answers").strip()


def as_text(found: float) -> str:
    """A number as a model would write it: 3.0 is "3"."""
    if isinstance(found, int):
        return str(found)
    if not math.isfinite(found):
        raise BadQuestionError(f"{found} is no answer; write a number or a text")
    return str(int(found)) if found == int(found) else repr(found)


def choices_of(found: Any) -> list[str]:
    """Texts of choices, from a list or an object of them by letter; without the letter that each may start with."""
    if isinstance(found, Mapping):
        by_letter = {str(letter).strip().upper(): one for letter, one in found.items()}
        if sorted(by_letter) != list(LETTERS[: len(found)]):
            named = ", ".join(map(str, found))
            raise BadQuestionError(f"the letters of the choices are {named:.60}; name them A, B, ...")
        found = [by_letter[letter] for letter in sorted(by_letter)]
    choices = [text(one, "choices") for one in listed(found, "choices")]
    marked = [re.fullmatch(r"\s*\(?([A-Z])[.):]\s*(.*\S)\s*", one, re.DOTALL) for one in choices]
    if len(choices) > 1 and all(one and one[1] == letter for one, letter in zip(marked, LETTERS, strict=False)):
        return [one[2] for one in marked if one]
    return choices


def lettered(choices: Sequence[str]) -> dict[str, str]:
    """Choices by letter; at least two, all different."""
    if not choices:
        return {}
    if not 2 <= len(choices) <= len(LETTERS):
        raise BadQuestionError(f"there are {len(choices)} choices; give 2 to {len(LETTERS)}")
    seen = [folded(choice) for choice in choices]
    twice = next((choice for choice, same in zip(choices, seen, strict=True) if seen.count(same) > 1), None)
    if twice is not None:
        raise BadQuestionError(f"the choice {twice!r:.40} is there twice; make all of them different")
    return dict(zip(LETTERS, choices, strict=False))


def letter_of(found: str, options: Mapping[str, str]) -> str:
    """The letter of the choice that a right answer is, given by its text or its letter."""
    same = {letter for letter, option in options.items() if folded(option) == folded(found)}
    letter = re.sub(r"^[(\[]?(\w)[)\].:]{0,2}$", r"\1", found).upper()  # "(b)" and "B." too
    meant = same | ({letter} & set(options))
    if len(meant) > 1:
        raise BadQuestionError(f"the answer {found!r} is one choice's letter and another's text; write other choices")
    if not meant:
        raise BadQuestionError(f"the answer {found!r:.40} is none of the choices {', '.join(options.values()):.80}")
    return meant.pop()


def clusters(questions: Sequence[OwnQuestion]) -> list[int]:
    """For each question the number of its cluster: questions that share an image, also by way of others, are in one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for one in questions:
        for digest in one.digests:
            parent[root(digest)] = root(one.digests[0])
    roots = [root(one.digests[0]) for one in questions]
    number = {name: at for at, name in enumerate(dict.fromkeys(roots))}
    return [number[name] for name in roots]
