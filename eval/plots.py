"""Images of a task's summaries: accuracy against FLOPs and time, and where the kept tokens lie."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmprune.errors import VlmpruneError

from .settings import BLIND

Summary = Mapping[str, Any]
Point = tuple[float, float]


def prefill_flops(row: Summary) -> float | None:
    """Prefill FLOPs a question, a guide's included."""
    costs = row["costs"]
    return None if "prefill_flops" not in costs else costs["prefill_flops"] + costs.get("guide_flops", 0)


def total_ms(row: Summary) -> float | None:
    """Median time a question, in milliseconds."""
    seconds = row["costs"].get("seconds", {}).get("total")
    return None if seconds is None else 1000 * seconds


AXES: dict[str, tuple[str, Callable[[Summary], float | None]]] = {
    "flops": ("prefill FLOPs a question, a guide's included", prefill_flops),
    "time": ("median time a question, ms", total_ms),
}


def draw(task: str, rows: Sequence[Summary], out: Path) -> list[Path]:
    """Write TASK-pareto-flops.png, TASK-pareto-time.png and TASK-positions.png, each method's at its smallest budget.

    The row without an image is left out of the first two: the others would share a strip at the top.

    Raises:
        VlmpruneError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise VlmpruneError(
            "Images need the package matplotlib; install vlmprune[eval] or pass --no-pictures."
        ) from None
    matplotlib.use("Agg")
    scored = [row for row in rows if row["value"] is not None and row["method"] != BLIND]
    paths = [_pareto(task, scored, axis, out) for axis in AXES] if scored else []
    pruned = {row["method"]: row for row in rows if row["keep"] is not None and any(row["positions"]["kept_share"])}
    return paths + ([_positions(task, list(pruned.values()), out)] if pruned else [])


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in cost (x, less is better) and quality (y, more is better), by cost."""
    best: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _pareto(task: str, rows: Sequence[Summary], axis: str, out: Path) -> Path:
    from matplotlib import pyplot

    name, read = AXES[axis]
    figure, plot = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    markers = itertools.cycle("os^Dv<>PXph*d")
    colours = itertools.cycle(pyplot.get_cmap("tab20").colors[::2] + pyplot.get_cmap("tab20").colors[1::2])
    points = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [(x, row) for row in rows if row["method"] == method and (x := read(row))]
        mine.sort(key=lambda pair: pair[0])
        if not mine:
            continue
        points += [(x, row["value"]) for x, row in mine]
        plot.errorbar(
            [x for x, _ in mine],
            [row["value"] for _, row in mine],
            yerr=[row["standard_error"] for _, row in mine],
            label=method,
            marker=next(markers),
            color=next(colours),
            markersize=6,
            linewidth=1.2,
            capsize=2,
        )
    best = front(points)
    plot.step(
        [x for x, _ in best], [y for _, y in best], where="post", color="0.75", linewidth=5, zorder=0, label="best"
    )
    plot.set_xscale("log")
    plot.set_xlabel(f"{name} (logarithmic)")
    plot.set_ylabel(f"{rows[0]['main']} (bars: standard error)")
    plot.set_title(f"{task}: {rows[0]['questions']:,} questions, {rows[0]['model']}", fontsize=10)
    plot.grid(alpha=0.3, which="both")
    plot.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return _saved(figure, out / f"{task}-pareto-{axis}.png")


def _positions(task: str, rows: Sequence[Summary], out: Path) -> Path:
    """A map a row: how often the tokens of each part of the image were kept, as a multiple of the budget."""
    from matplotlib import pyplot

    columns = min(6, len(rows))
    lines = math.ceil(len(rows) / columns)
    size = (1.7 * columns + 1, 1.9 * lines + 0.5)
    figure, plots = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    shown = None
    for plot in plots.flat:
        plot.axis("off")
    for plot, row in zip(plots.flat, rows, strict=False):
        found = row["positions"]
        fractions = [math.nan if one is None else one for one in found["kept_share"]]
        mean = [one for one in fractions if not math.isnan(one)]
        relative = [one / (sum(mean) / len(mean)) for one in fractions]
        grid = [relative[at : at + found["columns"]] for at in range(0, len(relative), found["columns"])]
        shown = plot.imshow(grid, vmin=0, vmax=2, cmap="viridis")
        plot.set_title(f"{row['method']} {row['keep']}", fontsize=8)
    figure.colorbar(shown, ax=plots, shrink=0.7, label="kept, relative to the mean")
    return _saved(figure, out / f"{task}-positions.png")


def _saved(figure: Any, path: Path) -> Path:
    """Written with 128 colours: a third of the bytes."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    pyplot.close(figure)
    Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)
    return path
