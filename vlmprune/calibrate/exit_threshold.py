"""Where should the small model answer alone? Measured on held-out data: every threshold's accuracy and cost.

The guide, the unpruned model and the pruned one (once a budget, its guide before it) answer every question; what a
threshold would do then follows without running anything again, since an exit takes one answer or the other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..accounting.scores import exact_match, sureness
from ..api import wrap
from ..errors import VlmpruneError

if TYPE_CHECKING:
    from PIL import Image

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

    def plot(self, path: str | Path | None = None) -> Image.Image:
        """Accuracy against cost, one line a budget; also written to `path` where one is given.

        Raises:
            VlmpruneError: matplotlib is not installed.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise VlmpruneError("Plots need matplotlib; install it with pip install matplotlib.") from None
        from PIL import Image

        figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for keep in dict.fromkeys(point.keep for point in self.points):
            line = sorted((p for p in self.points if p.keep == keep), key=lambda p: p.cost)
            cost = [p.cost for p in line]
            axes.plot(cost, [p.accuracy for p in line], label=f"keep {keep}", marker=".", markersize=3)
            axes.fill_between(cost, [p.low for p in line], [p.high for p in line], alpha=0.12)
        for point, name, marker in (
            (self.unpruned, "unpruned", "s"),
            (self.guide_alone, "guide alone", "^"),
            (self.chosen, f"chosen: exit_at {self.chosen.exit_at}", "*"),
        ):
            axes.scatter([point.cost], [point.accuracy], marker=marker, s=70, label=name, zorder=3)
        axes.set_xlabel(f"cost, share of the unpruned model's ({self.cost_in})")
        axes.set_ylabel(f"accuracy ({self.chosen.samples} samples, 95 % interval)")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.25)
        canvas.draw()
        image = Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")
        if path is not None:
            image.save(path)
        return image


@dataclass(frozen=True)
class _Answered:
    """One question: score and cost of each way of answering it, and the guide's exit score."""

    sure: float
    guide: float
    guide_cost: float
    unpruned: float
    unpruned_cost: float
    pruned: list[float]
    pruned_cost: list[float]


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
        raise VlmpruneError(f"cost={cost!r} is unknown; use 'seconds' or 'flops'.")
    budgets = list(keeps) if keeps is not None else [method.keep]
    if not budgets:
        raise VlmpruneError("keeps=[] offers no budget; pass one or more, or None for the method's own.")
    variants = [replace(method, keep=keep, exit_at=None) for keep in budgets]
    answered = [
        _answer(model, processor, method, variants, sample, number, score, cost, generation)
        for number, sample in enumerate(_progress(data))
    ]
    if not answered:
        raise VlmpruneError("The data for calibration is empty; pass (image, question, answers) tuples.")
    points = [point for i, keep in enumerate(budgets) for point in _curve(answered, i, keep)]
    full = statistics.fmean(a.unpruned_cost for a in answered)
    unpruned = _point([a.unpruned for a in answered], 1.0, None, 0.0, 1.0)
    alone = [a.guide for a in answered]
    guide_alone = _point(alone, 1.0, 0.0, 1.0, statistics.fmean(a.guide_cost for a in answered) / full)
    chosen = _choose(points, unpruned, max_accuracy_loss, max_cost)
    made = replace(method, keep=chosen.keep, exit_at=chosen.exit_at)
    return Calibration(made, chosen, points, unpruned, guide_alone, cost)


def _progress(data: Iterable[Any]) -> Iterable[Any]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(data, "calibrating", console=console, transient=True, disable=not console.is_terminal)


def _answer(
    model: Any,
    processor: Any,
    method: SGL,
    variants: list[SGL],
    sample: Any,
    number: int,
    score: Callable[[str, str | Sequence[str]], float],
    cost: str,
    generation: dict[str, Any],
) -> _Answered:
    try:
        image, question, truths = sample
    except (TypeError, ValueError):
        raise VlmpruneError(
            f"Sample {number} of the calibration data is {sample!r:.60}; make every one (image, question, answers)."
        ) from None

    def ask(way: Any) -> tuple[float, float, Any]:
        with wrap(model, way, processor=processor) as pruned:
            answer = pruned.ask(image, question, **generation)
        report = answer.report
        own = report.seconds["total"] - report.seconds.get("guide", 0.0) if cost == "seconds" else report.prefill_flops
        return score(answer.text, truths), float(own), report

    unpruned, unpruned_cost, _ = ask("none")
    guide, _, report = ask(replace(method, exit_at=0.0))
    sure = sureness(report.confidence[0], report.consistency[0])
    guide_cost = report.seconds["guide"] if cost == "seconds" else report.guide_flops
    runs = [ask(variant)[:2] for variant in variants]
    pruned, dear = [right for right, _ in runs], [spent for _, spent in runs]
    return _Answered(sure, guide, float(guide_cost), unpruned, unpruned_cost, pruned, dear)


def _curve(answered: list[_Answered], budget: int, keep: float | int) -> list[Point]:
    """All thresholds that make a difference, from "never" to "always"."""
    levels = sorted({a.sure for a in answered}, reverse=True)
    step = max(1, math.ceil(len(levels) / MOST_THRESHOLDS))
    full = statistics.fmean(a.unpruned_cost for a in answered)
    points = []
    for at in [None, *levels[::step], 0.0]:
        gone = [at is not None and a.sure >= at for a in answered]
        right = [a.guide if left else a.pruned[budget] for a, left in zip(answered, gone, strict=True)]
        spent = [
            a.guide_cost + (0.0 if left else a.pruned_cost[budget]) for a, left in zip(answered, gone, strict=True)
        ]
        points.append(_point(right, keep, at, statistics.fmean(gone), statistics.fmean(spent) / full))
    return points


def _point(right: list[float], keep: float | int, exit_at: float | None, exits: float, cost: float) -> Point:
    mean = statistics.fmean(right)
    error = statistics.stdev(right) / math.sqrt(len(right)) if len(right) > 1 else 0.0
    low, high = max(0.0, mean - _Z * error), min(1.0, mean + _Z * error)
    return Point(keep, exit_at, mean, low, high, exits, cost, len(right))


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
