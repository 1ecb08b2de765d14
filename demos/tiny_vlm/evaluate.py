"""Accuracy of the bundled pair on scenes never seen in training, and on easy-vqa's test split.

    python -m demos.tiny_vlm.evaluate --out demos/tiny_vlm/results/accuracy.json

An answer counts if it is exactly the right one. All questions of a picture are packed behind it, which
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
from vlmprune.tiny.scenes import FAMILIES, GRID, Question, Scene, benchmark, render

from .language import enlarged
from .packing import answer_logits, encode_text, pack, right_answers
from .tower import encode, pixels

BATCH = 8
Asked = tuple[np.ndarray, list[Question]]  # a picture and its questions


def scene_questions(number: int, split: str) -> list[Asked]:
    """``number`` questions of every family, grouped by scene: the families walk the same seeds."""
    scenes: dict[int, tuple[Scene, list[Question]]] = {}
    for family in FAMILIES:
        for scene, question in benchmark(family, number, split):
            scenes.setdefault(scene.seed, (scene, []))[1].append(question)
    return [(render(scene), questions) for scene, questions in scenes.values()]


def easy_vqa_questions(number: int) -> list[Asked]:
    """The first questions of the public package's test split, grouped by picture."""
    import easy_vqa

    texts, answers, pictures = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    rows: dict[int, list[Question]] = defaultdict(list)
    for text, answer, n in list(zip(texts, answers, pictures, strict=True))[:number]:
        rows[n].append(Question("easy-vqa test", text, answer))
    return [(enlarged(paths[n]), questions) for n, questions in rows.items()]


def batches(asked: list[Asked]) -> Iterator[list[Asked]]:
    """Of similar length, so that little is padded."""
    order = sorted(asked, key=lambda pair: sum(len(encode_text(q.text)) + len(encode_text(q.answer)) for q in pair[1]))
    for at in range(0, len(order), BATCH):
        yield order[at : at + BATCH]


@torch.no_grad()
def measure(models: dict[str, Any], asked: list[Asked]) -> dict[str, dict[str, Any]]:
    """Per family: accuracy of each model with its standard error, and the chance level. One vision pass for both."""
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    tower = models["large"].model.vision_tower
    for part in batches(asked):
        places = torch.arange(GRID * GRID).expand(len(part), -1)
        features = encode(tower, pixels([picture for picture, _ in part]), places)[:, 1:]
        packed = pack([questions for _, questions in part], places)
        for name, model in models.items():
            for family, hit in right_answers(answer_logits(model, features, packed)[0], packed):
                right[family][name].append(hit)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, questions in asked:
        for question in questions:
            answers[question.family][question.answer] += 1
    return {family: _row(right[family], answers[family]) for family in answers}


def _row(right: dict[str, list[bool]], answers: Counter[str]) -> dict[str, Any]:
    number = sum(answers.values())
    record: dict[str, Any] = {"questions": number, "chance": answers.most_common(1)[0][1] / number}
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
    found = measure(models, scene_questions(args.questions, args.split))
    families = {family: found[family] for family in FAMILIES} | measure(models, easy_vqa_questions(args.easy_vqa))
    record = {"families": families, "provenance": provenance(args.split)}
    print(table(record))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
