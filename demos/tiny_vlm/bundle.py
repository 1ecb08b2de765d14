"""The questions that the package ships, one per image: for `vlmprune compare --questions` and the demo's examples;
the example of `vlmprune ask`, one question about four images; and a clip.

python -m demos.tiny_vlm.bundle     # writes vlmprune/tiny/benchmark, vlmprune/tiny/album and vlmprune/tiny/clip.webp
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmprune.tiny import ALBUM, BENCHMARK, CLIP

from .questions import SCORED, benchmark
from .scenes import Scene, make_scene
from .video.clips import make_clip

COUNT = 96
# Chosen to show what pruning by chance loses: with a tenth of the tokens the answer is right where a small model ranks
# them, and wrong with 8 of 10 random draws. How often that is so, the benchmark tells, not the example.
ALBUM_SEEDS, ALBUM_QUESTION = range(70152, 70156), "What colour is the triangle?"
CLIP_SEED = 188  # a star moves right, a diamond up, and two things appear
FRAME = 500  # milliseconds
LOSSLESS: dict[str, Any] = {"lossless": True, "quality": 100, "method": 6}  # every pixel as it is
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


def save(scene: Scene, path: Path) -> None:
    """The scene's image, every pixel as it is."""
    scene.image().save(path, **LOSSLESS)


def main() -> None:
    """Replace the folders."""
    for folder in (BENCHMARK, ALBUM):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for number, seed in enumerate(ALBUM_SEEDS):
        save(make_scene(seed, "test"), ALBUM / f"{number}.webp")
    (ALBUM / "question.txt").write_text(f"{ALBUM_QUESTION}\n")
    first, *rest = make_clip(CLIP_SEED, "test").frames()
    first.save(CLIP, save_all=True, append_images=rest, duration=FRAME, **LOSSLESS)
    records = []
    for scene, record in bundled():
        save(scene, BENCHMARK / record["image"])
        records.append(json.dumps(record) + "\n")
    (BENCHMARK / "questions.jsonl").write_text("".join(records))


if __name__ == "__main__":
    main()
