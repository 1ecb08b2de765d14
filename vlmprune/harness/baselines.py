"""What every comparison needs besides its methods: baselines, held-out questions, accuracy by chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..accounting.scores import exact_match
from .measure import MethodRun
from .models import Models, make, options_of

# Rows of every table; the last two only with a small model.
BASELINES = ("random", "uniform", "downsample", "fastv", "fastv-oracle", "sgl", "sgl + exit")
WITH_EXIT = " + exit"
EXIT_AT = 0.9  # for rows of SGL with early exit, calibrated for the bundled pair
CHANCE = "most frequent answer"  # the row without any model, for questions of our own
CHANCE_DRAWS = 400  # validation questions per family that determine this answer
NO_EXACT_ANSWER = "caption"  # the one family of questions that exact match cannot score
SEEDS_A_RUN = 1_000_000  # scenes of one --seed never meet those of another


def default_method(model: str | None, guide: str | None) -> str:
    """The method when none is named: SGL if there is a small model, else FastV."""
    return "sgl" if model is None or guide is not None else "fastv"


def entries(
    names: Iterable[str], budgets: Sequence[float], models: Models | None, *, layer: float | None = None, seed: int = 0
) -> Iterator[tuple[str, str, Any]]:
    """Name, budget and method object of every pruned row; methods without a budget have one row.

    Without `models` the method objects are only checked, as `make` does.
    """
    for name in names:
        method = name.removesuffix(WITH_EXIT)
        takes = options_of(method)
        given: dict[str, Any] = {"seed": seed} if "seed" in takes else {}
        if method != name:
            given["exit_at"] = EXIT_AT
        if "keep" not in takes:
            yield name, "", make(method, models, **given)
            continue
        for budget in budgets:
            yield name, str(budget), make(method, models, keep=budget, layer=layer, **given)


def compared(models: Models, names: Iterable[str], budgets: Sequence[float], **options: Any) -> list[MethodRun]:
    """The unpruned model, the small one alone (what a pruned large model has to beat), and the rows of `entries`."""
    runs = [MethodRun(models.model, models.processor, make("none"), "none")]
    if models.small is not None:
        runs.append(MethodRun(models.small, models.small_processor, make("none"), "small alone"))
    for name, budget, made in entries(names, budgets, models, **options):
        runs.append(MethodRun(models.model, models.processor, made, name, budget))
    return runs


def scored_families() -> list[str]:
    """The families of questions that exact match can score, in their fixed order."""
    from ..tiny.questions import FAMILIES

    return [family for family in FAMILIES if family != NO_EXACT_ANSWER]


def scene_questions(count: int, split: str, *, start: int = 0, apart: int = 0) -> list[tuple[Any, Any]]:
    """`count` images with a `Question` each, the families in turn, at most one question per family and image.

    Args:
        start: the first scene's seed. apart: how many seeds further on each family starts than the one before it.
    """
    from ..tiny.questions import benchmark

    streams = [
        benchmark(family, count, split, start=start + i * apart, per_scene=1)
        for i, family in enumerate(scored_families())
    ]
    drawn = [next(streams[i % len(streams)]) for i in range(count)]
    return [(scene.image(), question) for scene, question in drawn]


def held_out(count: int, seed: int, batch_size: int) -> tuple[list[tuple[list[Any], list[str]]], list[str]]:
    """Batches of images and questions from the test split, and the answers in order.

    No two questions share an image: the answers are independent, as the standard error assumes.
    """
    apart = SEEDS_A_RUN // len(scored_families())
    pairs = scene_questions(count, "test", start=seed * SEEDS_A_RUN, apart=apart)
    batches = [
        ([image for image, _ in part], [question.text for _, question in part])
        for part in (pairs[at : at + batch_size] for at in range(0, count, batch_size))
    ]
    return batches, [question.answer for _, question in pairs]


def by_chance(truths: Sequence[str]) -> dict[str, Any]:
    """The row that always gives a family's most frequent answer, as counted on validation questions."""
    from ..tiny.questions import benchmark

    guesses = [
        Counter(question.answer for _, question in benchmark(family, CHANCE_DRAWS, "validation")).most_common(1)[0][0]
        for family in scored_families()
    ]
    right = [exact_match(guesses[i % len(guesses)], truth) for i, truth in enumerate(truths)]
    return {"method": CHANCE, "keep": None, **accuracy(right)}


def accuracy(right: Sequence[float]) -> dict[str, float]:
    """Mean and standard error of scores that are 0 or 1."""
    mean = sum(right) / len(right)
    return {"accuracy": mean, "standard_error": math.sqrt(mean * (1 - mean) / len(right))}
