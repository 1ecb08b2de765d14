"""Pick the captioner's `keep_score` for the bundled pair, on validation scenes only.

    python -m eval.captions.tune --scenes 48

Every scene is described once and every sentence scored once; only what is kept changes. Picked is the least score from
which on Patch Matters is no less precise than one caption of the whole image: the value for `BUNDLED_CONFIG`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import vlmprune
from eval.captions.metrics import count, summary
from eval.captions.run import groups, held_out
from vlmprune.captioner import BUNDLED_CONFIG, PatchCaptioner
from vlmprune.captioner.match import Matcher

SCORES = tuple(round(0.3 + 0.05 * step, 2) for step in range(13))  # from the paper's 0.3 to 0.9

SHOWN = ("object_recall", "object_precision", "attribute_accuracy", "chair_i")


class Remembered:
    """A matcher that scores each sentence on each image once."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self._known: dict[tuple[bytes, str], float] = {}

    def __call__(self, pairs: Sequence[Any]) -> list[float]:
        keys = [(image.tobytes(), text) for image, text in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._known}
        self._known.update(zip(new, self.matcher(list(new.values())), strict=True))
        return [self._known[key] for key in keys]


def sweep(model: Any, processor: Any, scenes: Sequence[Any], scores: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Quality of one caption of the whole image, and of Patch Matters at each score."""
    texts: dict[str, list[str]] = {"one caption": [], **{f"{score:g}": [] for score in scores}}
    base = PatchCaptioner(model, processor, config=replace(BUNDLED_CONFIG, batch_size=32))
    matcher = Remembered(base.matcher)
    done = 0
    for group in groups(scenes):
        images = [scene.image() for scene in group]
        for image, found in zip(images, base.describe(images), strict=True):
            texts["one caption"].append(found.whole)
            for score in scores:
                config = replace(base.config, keep_score=score)
                captioner = PatchCaptioner(model, processor, config=config, matcher=matcher)
                texts[f"{score:g}"].append(captioner.aggregate(image, found).text)
        done += len(group)
        print(f"{done} of {len(scenes)} scenes", flush=True)
    return {
        name: summary([count(text, scene) for text, scene in zip(said, scenes, strict=True)])
        for name, said in texts.items()
    }


def picked(found: dict[str, dict[str, Any]]) -> str | None:
    """The least score that costs no precision against one caption, None where every one does."""
    least = found["one caption"]["object_precision"]["value"]
    good = [name for name in found if name != "one caption" and found[name]["object_precision"]["value"] >= least]
    return min(good, key=float, default=None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=48, help="validation scenes with 4 to 8 objects")
    parser.add_argument("--start", type=int, default=0, help="first seed of the validation split")
    parser.add_argument("--model", choices=("large", "small"), default="large")
    args = parser.parse_args()
    large, small, processor = vlmprune.load_tiny()
    scenes = held_out(args.scenes, args.start, "validation")
    found = sweep(large if args.model == "large" else small, processor, scenes, SCORES)
    print(f"{'keep_score':<14}{'recall':>8}{'precision':>11}{'attributes':>12}{'CHAIR-i':>9}")
    for name, row in found.items():
        cells = [row[column]["value"] for column in SHOWN]
        print("{:<14}{:>8.3f}{:>11.3f}{:>12.3f}{:>9.3f}".format(name, *cells))
    best = picked(found)
    print(f"keep_score={best}" if best else "every keep_score costs precision against one caption")


if __name__ == "__main__":
    main()
