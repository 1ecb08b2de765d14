"""Exact answers on many questions at once, for watching a training and for the report alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from vlmprune.harness.stats import standard_error

from .packing import answer_logits, encode_text, pack, right_answers
from .questions import FAMILIES, Question, benchmark, by_scene
from .scenes import render
from .tower import encode, pixels
from .vocabulary import GRID

BATCH = 8
Asked = tuple[np.ndarray, list[Question]]  # a picture and its questions


def scene_questions(number: int, split: str) -> list[Asked]:
    """``number`` questions of every family, grouped by scene."""
    asked = by_scene(pair for family in FAMILIES for pair in benchmark(family, number, split))
    return [(render(scene), questions) for scene, questions in asked]


def batches(asked: list[Asked]) -> Iterator[list[Asked]]:
    """Of similar length, so that little is padded."""
    order = sorted(asked, key=lambda pair: sum(len(encode_text(q.text)) + len(encode_text(q.answer)) for q in pair[1]))
    for at in range(0, len(order), BATCH):
        yield order[at : at + BATCH]


@torch.no_grad()
def measure(models: dict[str, Any], asked: list[Asked]) -> dict[str, dict[str, Any]]:
    """Per family: accuracy of each model with its standard error, and the chance level. One vision pass for both."""
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    scenes: dict[str, list[int]] = defaultdict(list)  # which picture each of a family's questions shows
    tower = next(iter(models.values())).model.vision_tower
    for part in batches(asked):
        places = torch.arange(GRID * GRID).expand(len(part), -1)
        features = encode(tower, pixels([picture for picture, _ in part]), places)[:, 1:]
        packed = pack([questions for _, questions in part], places)
        for picture, questions in part:
            for question in questions:
                scenes[question.family].append(id(picture))
        for name, model in models.items():
            for family, hit in right_answers(answer_logits(model, features, packed), packed):
                right[family][name].append(hit)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in asked:
        for question in questions:
            answers[question.family][question.answer] += 1
    return {family: _row(right[family], answers[family], scenes[family]) for family in answers}


def _row(right: dict[str, list[bool]], answers: Counter[str], scenes: list[int]) -> dict[str, Any]:
    number = sum(answers.values())
    record: dict[str, Any] = {"questions": number, "chance": answers.most_common(1)[0][1] / number}
    for name, hits in right.items():
        record[name] = sum(hits) / len(hits)
        record[f"{name}_standard_error"] = standard_error((hits, None), scenes)
    return record
