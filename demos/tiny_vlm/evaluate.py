"""Accuracy of the bundled pair on scenes never seen in training, and on easy-vqa's test split.

    python -m demos.tiny_vlm.evaluate --out demos/tiny_vlm/results/accuracy.json

An answer counts if it is exactly the right one. All questions of an image are packed behind it, which
equals asking them one by one (see `packing`). Chance = always giving the split's most frequent answer.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

from eval import markdown
from eval.provenance import provenance, write_record
from vlmprune.tiny import load_tiny
from vlmprune.tiny.questions import FAMILIES, Question

from .language import enlarged
from .scoring import Asked, measure, scene_questions

PRECISION = "fp32, weights stored in fp16"


def easy_vqa_questions(number: int) -> list[Asked]:
    """The first questions of the public package's test split, grouped by image."""
    import easy_vqa

    texts, answers, images = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    rows: dict[int, list[Question]] = defaultdict(list)
    for text, answer, n in list(zip(texts, answers, images, strict=True))[:number]:
        rows[n].append(Question("easy-vqa test", text, answer))
    return [(enlarged(paths[n]), questions) for n, questions in rows.items()]


def table(record: dict[str, Any]) -> str:
    """Markdown, for the model card."""
    lines = []
    for family, row in record["families"].items():
        cells = [f"{row[name]:.3f} ± {row[f'{name}_standard_error']:.3f}" for name in ("small", "large")]
        lines.append([family, str(row["questions"]), f"{row['chance']:.3f}", *cells])
    return markdown.table(("questions", "n", "chance", "small", "large"), lines)


def main() -> None:
    """Measure, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1000, help="a family")
    parser.add_argument("--easy-vqa", type=int, default=2000)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    large, small, _ = load_tiny()
    models = {"large": large, "small": small}
    found = measure(models, scene_questions(args.questions, args.split))
    families = {family: found[family] for family in FAMILIES} | measure(models, easy_vqa_questions(args.easy_vqa))
    record = {"families": families, "provenance": provenance(split=args.split, precision=PRECISION)}
    print(table(record))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
