"""Patch Matters against a single caption, on scenes whose every object is known.

    python -m eval.captions.run --scenes 300 --pruned-scenes 100 --out eval/captions/results/scenes.json

Held-out scenes with 4 to 8 objects. Rows: one caption of the whole image; 13 samples of it merged without a filter;
Patch Matters; the same descriptions without the filter; and, on the first of the scenes, with crops blown up instead
of shown in place, and with every crop pruned. All rows of a scene come from one run; what two rows share (the
descriptions of a filter and a no-filter row) is made once and charged to both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import vlmprune
from eval.captions.metrics import Counts, count, difference, summary
from eval.captions.text_metrics import text_metrics
from eval.provenance import provenance
from vlmprune.captioner import BUNDLED_CONFIG, CaptionConfig, PatchCaptioner
from vlmprune.captioner.caption import Cost
from vlmprune.captioner.divide import Patch
from vlmprune.captioner.hierarchy import Hierarchy
from vlmprune.captioner.pipeline import Described
from vlmprune.captioner.sampling import seed_of
from vlmprune.captioner.text import joined
from vlmprune.captioner.vlm import Spent
from vlmprune.cli.measure import backend
from vlmprune.tiny.scenes import Scene, caption, make_scene

MANY = 13  # as many samples of the whole image as Patch Matters takes in all
KEEPS = (0.35, 0.18, 0.09)
METHODS = ("random", "fastv", "sgl")
TOGETHER = 16  # scenes described in one batch
REFERENCE = "one global caption"
PATCHES = "Patch Matters"


@dataclass
class Row:
    """A way to caption: its captions so far, what each got right, and what all cost."""

    name: str
    method: str = "none"
    keep: float | None = None
    texts: list[str] = field(default_factory=list)
    counts: list[Counts] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    described: int = 0
    matched: int = 0
    seconds: float = 0.0

    def add(self, text: str, scene: Scene) -> None:
        self.texts.append(text)
        self.counts.append(count(text, scene))

    def record(self, scenes: Sequence[Scene]) -> dict[str, Any]:
        """JSON-serialisable; costs are means per image."""
        n = len(self.texts)
        out: dict[str, Any] = {"name": self.name, "method": self.method, "keep": self.keep, "scenes": n}
        cost = {
            "describe_calls": self.described / n,
            "match_calls": self.matched / n,
            "visual_tokens": self.spent.visual_tokens / n,
            "layer_avg_tokens": self.spent.layer_avg_tokens / n,
            "prefill_flops": None if self.spent.prefill_flops is None else self.spent.prefill_flops / n,
            "images_encoded": self.spent.images / n,
            "seconds": self.seconds / n,
        }
        references = [[caption(scene)] for scene in scenes[:n]]
        totals = {name: sum(getattr(one, name) for one in self.counts) for name in vars(Counts())}
        return out | {
            "quality": summary(self.counts),
            "text": text_metrics(self.texts, references),
            "counts": totals,
            "cost": cost,
        }


def held_out(number: int, start: int = 0, split: str = "test", least: int = 4, most: int = 8) -> list[Scene]:
    """Scenes of a split with `least` to `most` objects, by seed."""
    found: list[Scene] = []
    seed = start
    while len(found) < number:
        scene = make_scene(seed, split)
        seed += 1
        if least <= len(scene.things) <= most:
            found.append(scene)
    return found


def groups(scenes: Sequence[Scene]) -> Iterator[Sequence[Scene]]:
    """The scenes in the portions that are described together."""
    for at in range(0, len(scenes), TOGETHER):
        yield scenes[at : at + TOGETHER]


def described(captioner: PatchCaptioner, images: Sequence[Any], row: Row) -> list[Described]:
    """Describe a group of images and charge the row."""
    captioner.vision.spent = Spent()
    cost = Cost()
    start = time.perf_counter()
    found = captioner.describe(images, cost)
    row.seconds += time.perf_counter() - start
    row.spent.add(captioner.vision.spent)
    row.described += cost.calls["describe"]
    return found


def aggregate(captioner: PatchCaptioner, scenes: Sequence[Scene], images: Sequence[Any], found: Any, row: Row) -> None:
    """Turn descriptions into captions and charge the row."""
    for scene, image, one in zip(scenes, images, found, strict=True):
        captioner.vision.spent = Spent()
        start = time.perf_counter()
        result = captioner.aggregate(image, one)
        row.seconds += time.perf_counter() - start
        row.spent.add(captioner.vision.spent)
        row.matched += result.cost.calls["match"]
        row.add(result.text, scene)


def through(captioner: PatchCaptioner, scenes: Sequence[Scene], row: Row) -> None:
    """Caption all scenes for one row."""
    for group in groups(scenes):
        images = [scene.image() for scene in group]
        aggregate(captioner, group, images, described(captioner, images, row), row)


def charge(row: Row, other: Row, before: tuple[float, int], spent: Spent) -> None:
    """Let `other` pay as well what `row` paid for shared descriptions."""
    other.seconds += row.seconds - before[0]
    other.described += row.described - before[1]
    other.spent.add(spent)


def merged(captioner: PatchCaptioner, size: tuple[int, int], samples: Sequence[str]) -> str:
    """Several samples of the whole image as one caption: similar sentences once, everything else kept."""
    config = replace(captioner.config, filter=False)
    work = Hierarchy(size, config, captioner.aggregator, lambda pairs: [])

    (region,) = work.within([Patch("image", work.image)], [samples])
    return joined(work.ledger.texts(region.live))


def many_samples(captioner: PatchCaptioner, scenes: Sequence[Scene], row: Row) -> None:
    """13 samples of each whole image at the patches' temperature."""
    config = captioner.config
    for group in groups(scenes):
        images = [scene.image() for scene in group]
        captioner.vision.spent = Spent()
        start = time.perf_counter()
        said = captioner.vision.describe(
            images,
            config.prompts.describe,
            seeds=[[seed_of(captioner.seed, scene.seed, k) for k in range(MANY)] for scene in group],
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )
        texts = [merged(captioner, image.size, samples) for image, samples in zip(images, said, strict=True)]
        row.seconds += time.perf_counter() - start
        row.spent.add(captioner.vision.spent)
        row.described += captioner.vision.spent.calls
        for text, scene in zip(texts, group, strict=True):
            row.add(text, scene)


def unpruned(model: Any, processor: Any, scenes: Sequence[Scene], config: CaptionConfig, seed: int) -> list[Row]:
    """All rows without pruning."""
    single, many = Row(REFERENCE), Row(f"{MANY} global samples, no filter")
    full, loose = Row(PATCHES), Row(f"{PATCHES}, no filter")
    with vlmprune.wrap(model, "none", processor=processor) as handle:
        captioner = PatchCaptioner(handle, config=config, seed=seed)
        unfiltered = PatchCaptioner(handle, config=replace(config, filter=False), seed=seed)
        for done, group in enumerate(groups(scenes)):
            images = [scene.image() for scene in group]
            before = (full.seconds, full.described)
            found = described(captioner, images, full)
            spent = captioner.vision.spent
            charge(full, loose, before, spent)
            aggregate(captioner, group, images, found, full)
            aggregate(unfiltered, group, images, found, loose)
            print(f"{done * TOGETHER + len(group)} of {len(scenes)} scenes", flush=True)
            alone(captioner, group, images, found, single)
        many_samples(captioner, scenes, many)
    return [single, many, full, loose]


def alone(captioner: PatchCaptioner, group: Sequence[Scene], images: Sequence[Any], found: Any, row: Row) -> None:
    """The one caption of the whole image that Patch Matters also has, made again by itself to know its cost."""
    config = captioner.config
    captioner.vision.spent = Spent()
    start = time.perf_counter()
    captioner.vision.describe(
        images,
        config.prompts.describe,
        seeds=[[seed_of(captioner.seed, "alone", scene.seed)] for scene in group],
        temperature=config.global_temperature,
        max_new_tokens=config.max_new_tokens,
    )
    row.seconds += time.perf_counter() - start
    row.spent.add(captioner.vision.spent)
    row.described += captioner.vision.spent.calls
    for scene, one in zip(group, found, strict=True):
        row.add(one.whole, scene)


def pruned(
    models: tuple[Any, Any],
    processor: Any,
    scenes: Sequence[Scene],
    config: CaptionConfig,
    seed: int,
    names: Sequence[str],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Patch Matters with every crop and every matching prompt pruned; and the methods that could not run, with why."""
    rows, skipped = [], []
    if config.view != "crop":
        row = Row(f"{PATCHES}, crops blown up")
        with vlmprune.wrap(models[0], "none", processor=processor) as handle:
            through(PatchCaptioner(handle, config=replace(config, view="crop"), seed=seed), scenes, row)
        rows.append(row)
    for name in names:
        for keep in (None,) if name == "none" else KEEPS:
            row = Row(PATCHES, name, keep)
            try:
                options: dict[str, Any] = {} if keep is None else {"keep": keep}
                options |= {"guide": models[1]} if name == "sgl" else {}
                with vlmprune.wrap(models[0], name, processor=processor, **options) as handle:
                    through(PatchCaptioner(handle, config=config, seed=seed), scenes, row)
            except vlmprune.VlmpruneError as error:
                skipped.append({"method": name, "keep": keep, "why": str(error)})
                print(f"SKIPPED {name} {keep}: {error}", flush=True)
                continue
            rows.append(row)
            print(f"{name} {keep} done", flush=True)
    return rows, skipped


def show(records: Sequence[dict[str, Any]]) -> None:
    """The table on stdout."""
    columns = ("object_recall", "object_precision", "attribute_accuracy", "chair_i", "chair_s")
    print(f"{'row':<44}{'n':>4}" + "".join(f"{c:>20}" for c in columns) + f"{'CIDEr':>8}{'tokens':>9}{'s':>7}")
    for one in records:
        keep = "" if one["keep"] is None else f" {one['keep']:g}"
        label = one["name"] + ("" if one["method"] == "none" else f", {one['method']}{keep}")
        cells = [f"{one['quality'][c]['value']:.3f} ± {one['quality'][c]['standard_error']:.3f}" for c in columns]
        cost = f"{one['cost']['layer_avg_tokens']:>9.0f}{one['cost']['seconds']:>7.2f}"
        quality = "".join(f"{cell:>20}" for cell in cells)
        print(f"{label:<44}{one['scenes']:>4}{quality}{one['text']['cider']:>8.3f}{cost}")


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--pruned-scenes", type=int, default=100, help="the first of them; 0: no pruned rows")
    parser.add_argument("--methods", nargs="*", default=METHODS, help="pruning methods beside none")
    parser.add_argument("--model", choices=("large", "small"), default="large")
    parser.add_argument("--view", choices=("in_place", "crop"), default=BUNDLED_CONFIG.view)
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test", help="settings are tuned on validation"
    )
    parser.add_argument("--keep-score", type=float, default=BUNDLED_CONFIG.keep_score)
    parser.add_argument("--start", type=int, default=0, help="first seed of the test split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    large, small, processor = vlmprune.load_tiny()
    models = (large, small) if args.model == "large" else (small, small)
    config = replace(BUNDLED_CONFIG, batch_size=32, view=args.view, keep_score=args.keep_score)
    scenes = held_out(args.scenes, args.start, args.split)
    rows = unpruned(models[0], processor, scenes, config, args.seed)
    few = scenes[: args.pruned_scenes]
    more, skipped = pruned(models, processor, few, config, args.seed, ["none", *args.methods]) if few else ([], [])
    reference = rows[0]
    record = {
        "rows": [row.record(scenes) for row in rows],
        "pruned": [row.record(few) for row in more],
        "skipped": skipped,
        "differences": {f"{row.name} minus {REFERENCE}": difference(reference.counts, row.counts) for row in rows[1:]},
        "settings": {
            "scenes": f"{args.split} split, 4 to 8 objects",
            "first_seed": args.start,
            "seed": args.seed,
            "config": config.to_dict(),
        },
        "provenance": provenance(model=f"the bundled {args.model} model", backend=backend(models[0])),
    }
    show([*record["rows"], *record["pruned"]])  # type: ignore[misc]  # a dictionary of mixed values
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
