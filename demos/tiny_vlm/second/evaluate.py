"""Accuracy of the second pair, and of its small model trained without dropping, on scenes never seen in training.

    python -m demos.tiny_vlm.second.evaluate --out demos/tiny_vlm/results/second.json

What counts as right is what does in `demos.tiny_vlm.evaluate`. A difference's interval takes questions of one scene
together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eval import markdown
from eval.provenance import provenance, write_record

from ..evaluate import PRECISION
from ..photo_scenes import make_photo_scene
from ..scenes import Scene, make_scene
from ..scoring import COUNTING, ROWS, cells, measure, scene_questions

WEIGHTS = Path(__file__).parent / "weights" / "112"
CONTROL = "control"  # the small model's recipe with --dropping 0
WORLDS: dict[str, Callable[[int, str], Scene]] = {"plain": make_scene, "photographs": make_photo_scene}
GOAL = 0.10  # by which the large model should count three to six better


def loaded(folder: Path) -> Any:
    """A stock model from its files, in fp32."""
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def table(record: dict[str, Any]) -> str:
    """Markdown, for the model card: both worlds, a family a row."""
    models = ("small", CONTROL, "large")
    rows = []
    for world, families in record["worlds"].items():
        for family, row in families.items():
            found = [f"{row['chance']:.3f}", *cells(row, models), _gap(row)]
            rows.append([world, family, str(row["questions"]), *found])
    heads = ("small", "small, nothing dropped", "large", "large - small, 95 % interval")
    return markdown.table(("world", "questions", "n", "chance", *heads), rows)


def _gap(row: dict[str, Any]) -> str:
    gap = row["difference"]
    return f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"


def findings(record: dict[str, Any]) -> str:
    """Whether counting is where it should be, and what dropping tokens in training did."""
    said = []
    for world, families in record["worlds"].items():
        row = families[COUNTING]
        reached = row["difference"]["difference"] >= GOAL and row["difference"]["low"] > 0
        said.append(
            f"Counts of three to six, {world}: large {row['large']:.2f}, small {row['small']:.2f}, difference "
            f"{_gap(row)} on {row['questions']} questions; wanted were {GOAL:.2f} and an interval above zero: "
            f"**{'reached' if reached else 'missed'}**. Always the most frequent count would be {row['chance']:.2f}."
        )
    rows = [row for one in record["worlds"].values() for family, row in one.items() if family != COUNTING]
    small, control = (sum(row[name] for row in rows) / len(rows) for name in ("small", CONTROL))
    said.append(
        f"The small model that never lost a token in training answers {control:.3f} of the questions, the one that "
        f"lost up to half of them in three of ten batches {small:.3f} (means over families and worlds)."
    )
    return markdown.bullets(said)


def main() -> None:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1000, help="a family")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="the folder of the three models")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    models = {name: loaded(args.weights / name) for name in ("large", "small", CONTROL)}
    worlds = {}
    for world, make in WORLDS.items():
        found = measure(models, scene_questions(args.questions, args.split, make))
        worlds[world] = {row: found[row] for row in ROWS if row in found}
    record = {"worlds": worlds, "provenance": provenance(split=args.split, precision=PRECISION)}
    print(table(record))
    print(findings(record))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
