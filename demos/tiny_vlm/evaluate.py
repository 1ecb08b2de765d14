"""Accuracy of the bundled pair on scenes never seen in training, and on easy-vqa's test split.

    python -m demos.tiny_vlm.evaluate --out demos/tiny_vlm/results/accuracy.json

An answer counts if it is exactly the right one. All questions of a picture are asked behind one encoding of it, which
equals asking them one by one (see `packing`). Chance = always giving the split's most frequent answer.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from vlmprune.tiny import load_tiny
from vlmprune.tiny.scenes import FAMILIES, GRID, Question, benchmark, render

from .language import enlarged
from .packing import answer_logits, encode_text, pack, right_answers
from .tower import encode, pixels

BATCH = 16
Asked = tuple[np.ndarray, Question]


def scene_questions(family: str, number: int, split: str) -> list[Asked]:
    """A family's questions with their pictures."""
    return [(render(scene), question) for scene, question in benchmark(family, number, split)]


def easy_vqa_questions(number: int) -> list[Asked]:
    """The first questions of the public package's test split."""
    import easy_vqa

    texts, answers, pictures = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    rows = list(zip(texts, answers, pictures, strict=True))[:number]
    return [(enlarged(paths[n]), Question("easy_vqa", text, answer)) for text, answer, n in rows]


def batches(asked: list[Asked]) -> Iterator[list[Asked]]:
    """Of similar length, so that little is padded."""
    order = sorted(asked, key=lambda pair: len(encode_text(pair[1].text)) + len(encode_text(pair[1].answer)))
    for at in range(0, len(order), BATCH):
        yield order[at : at + BATCH]


@torch.no_grad()
def measure(models: dict[str, Any], asked: list[Asked]) -> dict[str, Any]:
    """Accuracy of each model with its standard error, and the chance level. The models share one vision pass."""
    right: dict[str, list[bool]] = defaultdict(list)
    tower = models["large"].model.vision_tower
    for part in batches(asked):
        places = torch.arange(GRID * GRID).expand(len(part), -1)
        features = encode(tower, pixels([picture for picture, _ in part]), places)[:, 1:]
        packed = pack([[question] for _, question in part], places)
        for name, model in models.items():
            right[name] += [hit for _, hit in right_answers(answer_logits(model, features, packed)[0], packed)]
    answers = Counter(question.answer for _, question in asked)
    record: dict[str, Any] = {"questions": len(asked), "chance": answers.most_common(1)[0][1] / len(asked)}
    for name, hits in right.items():
        share = sum(hits) / len(hits)
        record[name] = share
        record[f"{name}_standard_error"] = math.sqrt(share * (1 - share) / len(hits))
    return record


def provenance(split: str) -> dict[str, Any]:
    """Where the numbers come from."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "split": split,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, CPU",
        "precision": "fp32, weights stored in fp16",
    }


def table(record: dict[str, Any]) -> str:
    """Markdown, for the model card."""
    lines = ["| questions | n | chance | small | large |", "|---|---|---|---|---|"]
    for family, row in record["families"].items():
        cells = [f"{row[name]:.3f} ± {row[f'{name}_standard_error']:.3f}" for name in ("small", "large")]
        lines.append(f"| {family} | {row['questions']} | {row['chance']:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
    families = {family: measure(models, scene_questions(family, args.questions, args.split)) for family in FAMILIES}
    families["easy-vqa test"] = measure(models, easy_vqa_questions(args.easy_vqa))
    record = {"families": families, "provenance": provenance(args.split)}
    print(table(record))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
