"""Where should the small model answer alone? Measured on held-out data: every threshold's accuracy and cost.

The guide, the unpruned model and the pruned one (once a budget, its guide before it) answer every question; what a
threshold would do then follows without running anything again, since an exit takes one answer or the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ..accounting.report import Report
from ..accounting.scores import exact_match, sureness
from ..api import wrap
from ..errors import VlmpruneError
from .samples import progress, triples

if TYPE_CHECKING:
    from ..methods.sgl import SGL

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

Outcome = tuple[float, float]  # how right an answer is, and what it cost


@dataclass(frozen=True)
class _Answered:
    """One question: the outcome of each way of answering it, the guide's cost included, and the guide's exit score."""

    exit_score: float
    unpruned: Outcome
    guide: Outcome
    pruned: list[Outcome]


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
    variants = [replace(method, keep=keep, exit_at=None) for keep in budgets]
    answered = [
        _answer(method, variants, cost, partial(_ask, model, processor, sample, score, generation))
        for sample in progress(triples(data), "calibrating")
    ]
    full = statistics.fmean(spent for _, spent in (a.unpruned for a in answered))
    points = [point for i, keep in enumerate(budgets) for point in _curve(answered, i, keep, full)]
    unpruned = _point([a.unpruned for a in answered], full, 1.0, None, 0.0)
    guide_alone = _point([a.guide for a in answered], full, 1.0, 0.0, 1.0)
    chosen = _choose(points, unpruned, max_accuracy_loss, max_cost)
    made = replace(method, keep=chosen.keep, exit_at=chosen.exit_at)
    return Calibration(made, chosen, points, unpruned, guide_alone, cost)


def _ask(
    model: Any, processor: Any, sample: Any, score: Callable[..., float], generation: dict[str, Any], way: Any
) -> tuple[float, Report]:
    """How right the answer to a sample is, and the report of the call."""
    image, question, truths = sample
    with wrap(model, way, processor=processor) as pruned:
        answer = pruned.ask(image, question, **generation)
    return score(answer.text, truths), answer.report


def _answer(method: SGL, variants: list[SGL], cost: str, ask: Callable[[Any], tuple[float, Report]]) -> _Answered:
    def spent(report: Report) -> float:
        """On the model itself."""
        seconds = report.seconds
        return float(seconds["total"] - seconds.get("guide", 0.0) if cost == "seconds" else report.prefill_flops)

    right, report = ask("none")
    unpruned = right, spent(report)
    right, report = ask(replace(method, exit_at=0.0))
    assert report.confidence is not None and report.consistency is not None, "SGL measures both"
    guide = right, float(report.seconds["guide"] if cost == "seconds" else report.guide_flops or 0)
    exit_score = sureness(report.confidence[0], report.consistency[0])
    runs = [ask(variant) for variant in variants]
    return _Answered(exit_score, unpruned, guide, [(right, guide[1] + spent(report)) for right, report in runs])


def _curve(answered: list[_Answered], budget: int, keep: float | int, full: float) -> list[Point]:
    """All thresholds that make a difference, from "never" to "always"."""
    levels = sorted({a.exit_score for a in answered}, reverse=True)
    step = max(1, math.ceil(len(levels) / MOST_THRESHOLDS))
    points = []
    for at in [None, *levels[::step], 0.0]:
        exited = [at is not None and a.exit_score >= at for a in answered]
        outcomes = [a.guide if left else a.pruned[budget] for a, left in zip(answered, exited, strict=True)]
        points.append(_point(outcomes, full, keep, at, statistics.fmean(exited)))
    return points


def _point(outcomes: list[Outcome], full: float, keep: float | int, exit_at: float | None, exits: float) -> Point:
    right, spent = zip(*outcomes, strict=True)
    mean = statistics.fmean(right)
    error = statistics.stdev(right) / math.sqrt(len(right)) if len(right) > 1 else 0.0
    low, high = max(0.0, mean - _Z * error), min(1.0, mean + _Z * error)
    return Point(keep, exit_at, mean, low, high, exits, statistics.fmean(spent) / full, len(right))


def _choose(points: list[Point], unpruned: Point, loss: float | None, limit: float | None) -> Point:
    if loss is not None:
        good = [p for p in points if p.accuracy >= unpruned.accuracy - loss]
        if not good:
            best = max(points, key=lambda p: p.accuracy)
            raise VlmpruneError(
                f"No setting loses only {loss} against the unpruned model's {unpruned.accuracy:.3f}; the best "
                f"reaches {best.accuracy:.3f}, so allow more or offer larger keeps."
            )
        chosen = min(good, key=lambda p: (p.cost, -p.accuracy))
    else:
        assert limit is not None
        good = [p for p in points if p.cost <= limit]
        if not good:
            least = min(p.cost for p in points)
            raise VlmpruneError(
                f"No setting costs only {limit} of the unpruned model; the cheapest costs {least:.3f}, so allow more "
                "or offer smaller keeps."
            )
        chosen = max(good, key=lambda p: (p.accuracy, -p.cost))
    # A threshold that equals a sample's own is rounded down, so that this sample still exits.
    return chosen if chosen.exit_at is None else replace(chosen, exit_at=math.floor(chosen.exit_at * 1e6) / 1e6)
