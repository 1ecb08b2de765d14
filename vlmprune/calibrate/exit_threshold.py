"""Where should the small model answer alone? Measured on held-out data: every threshold's accuracy and cost.

The guide, the unpruned model and the pruned one (once a budget, its guide before it) answer every question; what a
threshold would do then follows without running anything again, since an exit takes one answer or the other.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..accounting.scores import exact_match, sureness
from ..api import wrap
from ..errors import VlmpruneError
from ..methods.sgl import SGL
from .samples import progress, triples

MOST_THRESHOLDS = 100  # of a curve, at evenly spaced fractions of exits
_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Point:
    """One setting: accuracy with its 95 % interval, fraction of exits, cost relative to the unpruned model."""

    keep: float | int
    exit_at: float | None
    accuracy: float
    low: float
    high: float
    exits: float
    cost: float
    samples: int


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found: the method to use, the point it stands for, and all points it was picked from.

    `unpruned` and `guide_alone`: the two ends, as points (keep 1.0).
    """

    method: SGL
    chosen: Point
    points: list[Point]
    unpruned: Point
    guide_alone: Point
    cost_in: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "method": self.method.describe(),
            "cost_in": self.cost_in,
            **{name: asdict(getattr(self, name)) for name in ("chosen", "unpruned", "guide_alone")},
            "points": [asdict(point) for point in self.points],
        }

    def __str__(self) -> str:
        rows = [("unpruned", self.unpruned), ("guide alone", self.guide_alone), ("chosen", self.chosen)]
        rows += [("", point) for point in self.points[:: max(1, len(self.points) // 20)]]
        lines = [f"{'':<12}{'keep':>6}{'exit_at':>9}{'exits':>8}{'accuracy':>10}{'95 % interval':>18}{'cost':>8}"]
        for name, p in rows:
            at = "never" if p.exit_at is None else f"{p.exit_at:.3f}"
            interval = f"{p.low:.3f} .. {p.high:.3f}"
            lines.append(
                f"{name:<12}{p.keep!s:>6}{at:>9}{p.exits:>8.1%}{p.accuracy:>10.3f}{interval:>18}{p.cost:>8.1%}"
            )
        return "\n".join([*lines, f"{self.chosen.samples} samples; cost in {self.cost_in}, of the unpruned model's"])


def calibrate(
    method: SGL,
    model: Any,
    data: Iterable[tuple[Any, str, str | Sequence[str]]],
    *,
    processor: Any,
    max_accuracy_loss: float | None = None,
    max_cost: float | None = None,
    keeps: Sequence[float | int] | None = None,
    score: Callable[[str, str | Sequence[str]], float] = exact_match,
    cost: Literal["seconds", "flops"] = "seconds",
    **generation: Any,
) -> Calibration:
    """Pick `exit_at`, and `keep` where several are offered.

    Args:
        method: SGL whose other options stay as they are. model: not wrapped at the moment.
        data: held-out samples (image or list of images, question, right answer or answers); never the test split.
        max_accuracy_loss: the cheapest setting that loses no more than this against the unpruned model.
        max_cost: the most accurate setting that costs no more than this fraction of the unpruned model.
        keeps: budgets to try; None is the method's own.
        score: how right an answer is, 0..1; exact match unless given.
        cost: measured seconds of whole calls, or FLOPs of the language models' prompts and the guide.
        generation: for `generate`, `max_new_tokens` for example.
    Raises:
        VlmpruneError: not exactly one limit, no data, a bad sample, or no setting within the limit.
    """
    if (max_accuracy_loss is None) == (max_cost is None):
        raise VlmpruneError("Calibration needs one limit; pass either max_accuracy_loss= or max_cost=.")
    if cost not in ("seconds", "flops"):
        raise VlmpruneError(f"cost must be 'seconds' or 'flops', got {cost!r:.60}.")
    budgets = list(keeps) if keeps is not None else [method.keep]
    if not budgets:
        raise VlmpruneError("keeps=[] offers no budget; pass one or more, or None for the method's own.")
    pruned = [replace(method, keep=keep, exit_at=None) for keep in budgets]
    ways = ["none", replace(method, exit_at=0.0), *pruned]
    samples = progress(triples(data), "calibrating")
    asked = [_ask(model, processor, sample, ways, score, cost, generation) for sample in samples]
    scores, outcomes = (torch.tensor(found, dtype=torch.float64) for found in zip(*asked, strict=True))
    large, guide, *others = outcomes.unbind(dim=1)
    outcomes[..., 1] /= large[:, 1].mean()
    pairs = zip(budgets, others, strict=True)
    points = [point for keep, budget in pairs for point in _curve(scores, guide, budget, keep)]
    unpruned, guide_alone = _point(large, 1.0, None, 0.0), _point(guide, 1.0, 0.0, 1.0)
    chosen = _choose(points, unpruned, max_accuracy_loss, max_cost)
    made = replace(method, keep=chosen.keep, exit_at=chosen.exit_at)
    return Calibration(made, chosen, points, unpruned, guide_alone, cost)


def _ask(
    model: Any, processor: Any, sample: Any, ways: Sequence[Any], score: Any, cost: str, generation: dict[str, Any]
) -> tuple[float, list[tuple[float, float]]]:
    """A sample's exit score, and how right and how costly each way is; that of a budget includes the guide."""
    image, question, truths = sample
    answers = []
    for way in ways:
        with wrap(model, way, processor=processor) as pruned:
            answers.append(pruned.ask(image, question, **generation))
    right, reports = [score(answer.text, truths) for answer in answers], [answer.report for answer in answers]
    guide = reports[1]
    assert guide.confidence is not None and guide.consistency is not None, "SGL measures both"
    if cost == "seconds":
        first = guide.seconds["guide"]
        large = [report.seconds["total"] - report.seconds.get("guide", 0.0) for report in reports]
    else:
        first = guide.guide_flops or 0
        large = [report.prefill_flops for report in reports]
    spent = [large[0], first, *(first + own for own in large[2:])]
    return sureness(guide.confidence[0], guide.consistency[0]), list(zip(right, spent, strict=True))


def _curve(scores: Tensor, guide: Tensor, pruned: Tensor, keep: float | int) -> list[Point]:
    """All thresholds that make a difference, from "never" to "always"."""
    levels = scores.unique().flip(0).tolist()
    step = max(1, math.ceil(len(levels) / MOST_THRESHOLDS))
    points = []
    for at in [None, *levels[::step], 0.0]:
        exited = scores >= (math.inf if at is None else at)
        outcomes = torch.where(exited[:, None], guide, pruned)
        points.append(_point(outcomes, keep, at, float(exited.double().mean())))
    return points


def _point(outcomes: Tensor, keep: float | int, exit_at: float | None, exits: float) -> Point:
    """The point of outcomes [samples, 2]: how right, and the cost relative to the unpruned model's mean."""
    right, cost = map(statistics.fmean, outcomes.T.tolist())
    error = float(outcomes[:, 0].std()) / math.sqrt(len(outcomes)) if len(outcomes) > 1 else 0.0
    low, high = max(0.0, right - _Z * error), min(1.0, right + _Z * error)
    return Point(keep, exit_at, right, low, high, exits, cost, len(outcomes))


def _choose(points: list[Point], unpruned: Point, loss: float | None, limit: float | None) -> Point:
    if loss is not None:
        good = [p for p in points if p.accuracy >= unpruned.accuracy - loss]
        good.sort(key=lambda p: (p.cost, -p.accuracy))
        failed = (
            f"No setting loses only {loss} against the unpruned model's {unpruned.accuracy:.3f}; the best reaches "
            f"{max(p.accuracy for p in points):.3f}, so allow more or offer larger keeps."
        )
    else:
        good = [p for p in points if limit is not None and p.cost <= limit]
        good.sort(key=lambda p: (-p.accuracy, p.cost))
        failed = (
            f"No setting costs only {limit} of the unpruned model; the cheapest costs "
            f"{min(p.cost for p in points):.3f}, so allow more or offer smaller keeps."
        )
    if not good:
        raise VlmpruneError(failed)
    # A threshold that equals a sample's own is rounded down, so that this sample still exits.
    chosen = good[0]
    return chosen if chosen.exit_at is None else replace(chosen, exit_at=math.floor(chosen.exit_at * 1e6) / 1e6)
