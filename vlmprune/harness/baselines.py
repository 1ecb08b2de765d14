"""What every comparison needs besides its methods: baselines, held-out questions, accuracy by chance."""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from ..accounting.scores import exact_match
from ..errors import VlmpruneError
from .measure import MethodRun
from .models import Models, make, options_of

# Rows of every table; the last two only with a small model.
BASELINES = ("random", "uniform", "downsample", "fastv", "fastv-oracle", "sgl", "sgl + exit")
WITH_EXIT = " + exit"
BUDGETS = (0.5, 0.25, 0.1)
EXIT_AT = 0.9  # for rows of SGL with early exit, calibrated for the bundled pair
CHANCE = "most frequent answer"  # what needs no model, for questions of our own


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
        for budget in {str(one): one for one in budgets}.values():  # 1 is one token and 1.0 all of them
            yield name, str(budget), make(method, models, keep=budget, layer=layer, **given)


def compared(models: Models, names: Iterable[str], budgets: Sequence[float], **options: Any) -> list[MethodRun]:
    """The unpruned model, the small one alone (what a pruned large model has to beat), and the rows of `entries`."""
    runs = [MethodRun(models.model, models.processor, make("none"), "none")]
    if models.small is not None:
        runs.append(MethodRun(models.small, models.small_processor, make("none"), "small alone"))
    for name, budget, made in entries(names, budgets, models, **options):
        runs.append(MethodRun(models.model, models.processor, made, name, budget))
    return runs


def held_out(count: int, seed: int) -> list[dict[str, Any]]:
    """Bundled images and questions drawn by `seed`, as own questions; the families take turns.

    No two questions share an image: the answers are independent, as the standard error assumes.

    Raises:
        VlmpruneError: `count` is more than are bundled.
    """
    from ..tiny import questions

    bundled = questions()
    if count > len(bundled):
        raise VlmpruneError(f"--questions must be at most {len(bundled)}, as many as are bundled, got {count}")
    families = len({one["family"] for one in bundled})
    rounds = [bundled[at : at + families] for at in range(0, len(bundled), families)]
    drawn = chain(*random.Random(seed).sample(rounds, len(rounds)))
    return [{name: one[name] for name in ("image", "question", "answers")} for one in islice(drawn, count)]


def by_chance(truths: Sequence[str]) -> str:
    """Accuracy of always giving a family's most frequent answer, for the answers of `held_out`."""
    from ..tiny import questions

    # Whatever the seed, the families take turns as they do here.
    right = [exact_match(one["usual"], truth) for one, truth in zip(questions(), truths, strict=False)]
    mean = sum(right) / len(right)
    return f"{mean:.3f} ± {math.sqrt(mean * (1 - mean) / len(right)):.3f}"
