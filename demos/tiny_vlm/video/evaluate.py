"""Accuracy of the bundled pair for clips on clips never seen in training.

    python -m demos.tiny_vlm.video.evaluate --out demos/tiny_vlm/results/clips.json

An answer counts if it is exactly the right one. Chance = always giving a family's most frequent answer.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from eval import markdown
from eval.provenance import provenance, write_record
from vlmprune.tiny import load_tiny

from ..evaluate import PRECISION
from ..scoring import cells, scored
from .questions import FAMILIES, STILL, clip_benchmark
from .train import clip_hits


def table(record: dict[str, Any]) -> str:
    """Markdown, for the model card."""
    lines = []
    for family, row in record["families"].items():
        frames = "one frame" if family in STILL else "several frames"
        lines.append([family, frames, str(row["questions"]), f"{row['chance']:.3f}", *cells(row, ("small", "large"))])
    return markdown.table(("questions", "answered by", "n", "chance", "small", "large"), lines)


def main() -> None:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400, help="a family")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    large, small, _ = load_tiny(video=True)
    hits = {name: clip_hits(model, args.questions, args.split) for name, model in (("large", large), ("small", small))}
    families = {}
    for family in FAMILIES:
        answers = Counter(question.answer for _, question in clip_benchmark(family, args.questions, args.split))
        right = {name: found[family] for name, found in hits.items()}
        families[family] = scored(right, answers, range(args.questions))  # each about a clip of its own
    record = {"families": families, "provenance": provenance(split=args.split, precision=PRECISION)}
    print(table(record))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
