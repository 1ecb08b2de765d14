"""The questions that the package ships, one per image: for `vlmprune compare --questions` and the demo's examples.

python -m demos.tiny_vlm.bundle     # writes vlmprune/tiny/benchmark
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from typing import Any

from vlmprune.tiny import BENCHMARK

from .questions import SCORED, benchmark
from .scenes import Scene

COUNT = 96
DRAWS = 400  # validation questions of a family that determine its most frequent answer


def bundled() -> Iterator[tuple[Scene, dict[str, Any]]]:
    """Test scenes, each with one question, the scored families in turn: the answers are independent.

    A question's record has the keys of `vlmprune.tiny.questions`.
    """
    usual = {
        family: Counter(question.answer for _, question in benchmark(family, DRAWS, "validation")).most_common(1)[0][0]
        for family in SCORED
    }
    seed = 0
    for number in range(COUNT):
        family = SCORED[number % len(SCORED)]
        ((scene, question),) = benchmark(family, 1, "test", start=seed)
        seed = scene.seed + 1
        record = {"image": f"{number:02}.webp", "question": question.text, "answers": [question.answer]}
        yield scene, record | {"family": family, "usual": usual[family]}


def main() -> None:
    """Replace the folder."""
    shutil.rmtree(BENCHMARK, ignore_errors=True)
    BENCHMARK.mkdir()
    records = []
    for scene, record in bundled():
        scene.image().save(BENCHMARK / record["image"], lossless=True, quality=100, method=6)
        records.append(json.dumps(record) + "\n")
    (BENCHMARK / "questions.jsonl").write_text("".join(records))


if __name__ == "__main__":
    main()
