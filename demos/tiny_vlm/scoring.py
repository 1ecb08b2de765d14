"""Exact answers on many questions at once, for watching a training and for the report alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprune.harness.stats import interval, standard_error

from .packing import answer_logits, encode_text, pack, right_answers
from .questions import FAMILIES, Question, benchmark, by_scene
from .scenes import Scene, make_scene
from .tower import encode, pixels

BATCH = 8
HIGH = ("3", "4", "5", "6")  # the counts that take counting
COUNTING = "count of 3 to 6"  # a row of its own, of questions that are in the row of counts too
ROWS = tuple(row for family in FAMILIES for row in ((family, COUNTING) if family == "count" else (family,)))
Asked = tuple[np.ndarray, list[Question]]  # a picture and its questions


def scene_questions(number: int, split: str, make: Callable[[int, str], Scene] = make_scene) -> list[Asked]:
    """``number`` questions of every family, grouped by scene; `make` draws a scene of a world."""
    asked = by_scene(pair for family in FAMILIES for pair in benchmark(family, number, split, make=make))
    return [(np.asarray(scene.image()), questions) for scene, questions in asked]


def batches(asked: list[Asked]) -> Iterator[list[Asked]]:
    """Of similar length, so that little is padded."""
    order = sorted(asked, key=lambda pair: sum(len(encode_text(q.text)) + len(encode_text(q.answer)) for q in pair[1]))
    for at in range(0, len(order), BATCH):
        yield order[at : at + BATCH]


@torch.no_grad()
def measure(models: dict[str, Any], asked: list[Asked]) -> dict[str, dict[str, Any]]:
    """Per family: accuracy of each model with its standard error, and the chance level; of "large" and "small" their
    difference too."""
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    scenes: dict[str, list[int]] = defaultdict(list)  # which picture each of a family's questions shows
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for part in batches(asked):
        values = pixels([picture for picture, _ in part])
        found = {name: _right(model, values, [questions for _, questions in part]) for name, model in models.items()}
        shown = [(id(picture), question) for picture, questions in part for question in questions]
        for at, (picture, question) in enumerate(shown):
            counting = question.family == "count" and question.answer in HIGH
            for row in (question.family, *([COUNTING] if counting else [])):
                scenes[row].append(picture)
                answers[row][question.answer] += 1
                for name, hits in found.items():
                    right[row][name].append(hits[at])
    return {row: scored(right[row], answers[row], scenes[row]) for row in answers}


def _right(model: Any, values: Tensor, rows: list[list[Question]]) -> list[bool]:
    """Whether a stock model answers each question about its images (B, 3, H, W) exactly."""
    visual = model.config.image_seq_length
    places = torch.arange(visual).expand(len(rows), -1)
    features = encode(model.model.vision_tower, values, places)[:, 1:]
    packed = pack(rows, places, visual)
    return [hit for _, hit in right_answers(answer_logits(model, features, packed), packed)]


def cells(row: dict[str, Any], models: Iterable[str]) -> list[str]:
    """Each model's accuracy with its standard error, for a table."""
    return [f"{row[name]:.3f} ± {row[f'{name}_standard_error']:.3f}" for name in models]


def scored(right: dict[str, list[bool]], answers: Counter[str], scenes: Sequence[int]) -> dict[str, Any]:
    """A family's row: accuracies, the chance level; `scenes`: which one each question is about."""
    number = sum(answers.values())
    record: dict[str, Any] = {"questions": number, "chance": answers.most_common(1)[0][1] / number}
    for name, hits in right.items():
        record[name] = sum(hits) / len(hits)
        record[f"{name}_standard_error"] = standard_error((hits, None), scenes)
    if {"large", "small"} <= right.keys():
        record["difference"] = interval((right["large"], None), (right["small"], None), scenes).record()
    return record
