"""The exit's threshold for the bundled pair, from validation questions only, with the whole trade-off curve.

python -m eval.sgl.calibrate --questions 50 --out eval/sgl/results/calibration.json     # of each family; and a PNG
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import vlmprune
from demos.tiny_vlm.questions import SCORED, benchmark
from eval.provenance import provenance, write_record
from eval.tasks.scenes import Scenes
from vlmprune.calibrate.exit_threshold import Calibration
from vlmprune.harness.measure import backend


def main() -> None:
    """Calibrate, and write the curve as JSON and as an image beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=50, help="of each family")
    parser.add_argument("--max-accuracy-loss", type=float, default=0.03)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    large, small, processor = vlmprune.load_tiny()
    data = [
        (scene.image(), question.text, question.answer)
        for family in SCORED
        for scene, question in benchmark(family, args.questions, "validation")
    ]
    found = vlmprune.SGL(small, keep=0.18, layer=0).calibrate(
        large,
        data,
        processor=processor,
        max_accuracy_loss=args.max_accuracy_loss,
        keeps=[0.18, 0.09],
        cost="flops",
        max_new_tokens=Scenes.max_new_tokens,
    )
    about = provenance(model="the bundled pair", backend=backend(large), split="validation", questions=len(data))
    write_record({"about": about, **found.to_dict()}, args.out)
    plot(found).savefig(args.out.with_suffix(".png"))
    print(found)


def plot(found: Calibration) -> Figure:
    """Accuracy against cost, one line per budget."""
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for keep in dict.fromkeys(point.keep for point in found.points):
        line = sorted((p for p in found.points if p.keep == keep), key=lambda p: p.cost)
        cost = [p.cost for p in line]
        axes.plot(cost, [p.accuracy for p in line], label=f"keep {keep}", marker=".", markersize=3)
        axes.fill_between(cost, [p.low for p in line], [p.high for p in line], alpha=0.12)
    for point, name, marker in (
        (found.unpruned, "unpruned", "s"),
        (found.guide_alone, "guide alone", "^"),
        (found.chosen, f"chosen: exit_at {found.chosen.exit_at}", "*"),
    ):
        axes.scatter([point.cost], [point.accuracy], marker=marker, s=70, label=name, zorder=3)
    axes.set_xlabel(f"cost, fraction of the unpruned model's ({found.cost_in})")
    axes.set_ylabel(f"accuracy ({found.chosen.samples} samples, 95 % interval)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    return figure


if __name__ == "__main__":
    main()
