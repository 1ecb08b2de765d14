"""Patch Matters against a single caption, on scenes whose every object is known.

    python -m eval.captions.run --scenes 300 --pruned-scenes 100 --out eval/captions/results/scenes.json

Held-out scenes with 4 to 8 objects. Rows: one caption of the whole image; samples of it merged without a filter, and
with Patch Matters' own (what patches add beyond samples and a filter); Patch Matters; the same descriptions without
the filter; and, on the first of the scenes, with crops blown up instead of shown in place, by the small model alone,
and with every crop pruned. All rows of a scene come from one run; what two rows share (the
descriptions of a filter and a no-filter row) is made once and charged to both.

The same command again goes on where a killed one stopped: finished portions lie in `--records`.
`python -m eval.captions.tune` picks `keep_score` on validation scenes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import vlmprune
from demos.tiny_vlm.scenes import Scene, make_scene
from eval.captions import tables
from eval.captions.metrics import Counts, difference
from eval.captions.rows import CaptionRow
from eval.provenance import provenance, write_record
from eval.record import Record
from vlmprune.captioner import BUNDLED_CONFIG, CaptionConfig, PatchCaptioner
from vlmprune.captioner.hierarchy import Hierarchy
from vlmprune.captioner.pipeline import Described
from vlmprune.captioner.sampling import seed_of
from vlmprune.captioner.text import joined
from vlmprune.captioner.vlm import CaptionCost
from vlmprune.harness.measure import backend
from vlmprune.harness.models import weights_hash

FEW, MANY = 3, 13  # samples of the whole image: as many as of a patch, and as Patch Matters takes in all
KEEPS = (0.35, 0.18, 0.09)
METHODS = ("random", "uniform", "downsample", "fastv", "sgl")
TOGETHER = 16  # scenes described in one batch
REFERENCE = "one global caption"
PATCHES = "Patch Matters"


def held_out(number: int, start: int = 0, split: str = "test") -> list[Scene]:
    """Scenes of a split with 4 to 8 objects, by seed."""
    found: list[Scene] = []
    seed = start
    while len(found) < number:
        scene = make_scene(seed, split)
        seed += 1
        if 4 <= len(scene.things) <= 8:
            found.append(scene)
    return found


def groups(scenes: Sequence[Scene]) -> Iterator[Sequence[Scene]]:
    """The scenes in the portions that are described together."""
    for at in range(0, len(scenes), TOGETHER):
        yield scenes[at : at + TOGETHER]


@contextmanager
def charged(captioner: PatchCaptioner, row: CaptionRow) -> Iterator[None]:
    """Charge the row with what the captioner spends, and with the processor's time, whatever else the machine does."""
    captioner.vision.cost = CaptionCost()
    start = time.process_time()
    yield
    row.seconds += time.process_time() - start
    row.cost.add(captioner.vision.cost)


def described(captioner: PatchCaptioner, images: Sequence[Any], row: CaptionRow) -> list[Described]:
    """Describe a group of images and charge the row."""
    with charged(captioner, row):
        return captioner.describe(images)


def aggregate(captioner: PatchCaptioner, images: Sequence[Any], found: Any, row: CaptionRow) -> None:
    """Turn descriptions into captions and charge the row."""
    with charged(captioner, row):
        row.texts += [captioner.aggregate(image, one).text for image, one in zip(images, found, strict=True)]


def merged(captioner: PatchCaptioner, samples: Sequence[str], image: Any) -> str:
    """Several samples of the whole image as one caption: what is done within a patch, the filter where it is on."""

    def score(pairs: Sequence[tuple[Any, str]]) -> list[float]:
        captioner.vision.cost.calls["match"] += len(pairs)
        return list(captioner.matcher([(image, text) for _, text in pairs]))

    work = Hierarchy(image.size, captioner.config, captioner.aggregator, score)
    (region,) = work.within([replace(work.image, samples=tuple(samples))])
    return joined(work.provenance.texts(region.live))


def samples(
    captioners: Sequence[PatchCaptioner],
    count: int,
    scenes: Sequence[Scene],
    images: Sequence[Any],
    rows: Sequence[Any],
) -> None:
    """Samples of each whole image at the patches' temperature, merged by each captioner for its row."""
    config = captioners[0].config
    seeds = [[seed_of(captioners[0].seed, scene.seed, k) for k in range(count)] for scene in scenes]
    first = CaptionRow("")
    with charged(captioners[0], first):
        found = captioners[0].sample(images, config.prompts.describe, seeds, config.temperature)
    for captioner, row in zip(captioners, rows, strict=True):
        row.join(first)  # all pay for the samples they share
        with charged(captioner, row):
            row.texts += [merged(captioner, texts, image) for image, texts in zip(images, found, strict=True)]


def alone(
    captioner: PatchCaptioner, scenes: Sequence[Scene], images: Sequence[Any], found: Any, row: CaptionRow
) -> None:
    """The one caption of the whole image that Patch Matters also has, repeated by itself to know its cost."""
    seeds = [[seed_of(captioner.seed, "alone", scene.seed)] for scene in scenes]
    with charged(captioner, row):
        captioner.sample(images, captioner.config.prompts.describe, seeds, captioner.config.global_temperature)
    row.texts += [one.whole for one in found]


def unpruned(handle: Any, scenes: Sequence[Scene], config: CaptionConfig, seed: int) -> list[CaptionRow]:
    """The rows without pruning, on a group of scenes."""
    single, many = CaptionRow(REFERENCE), CaptionRow(f"{MANY} global samples, no filter")
    checked = [CaptionRow(filtered_name(count)) for count in (FEW, MANY)]
    full, loose = CaptionRow(PATCHES), CaptionRow(f"{PATCHES}, no filter")
    captioner = PatchCaptioner(handle, config=config, seed=seed)
    unfiltered = PatchCaptioner(handle, config=replace(config, filter=False), seed=seed)
    images = [scene.image() for scene in scenes]
    found = described(captioner, images, full)
    loose.join(full)  # both pay for the descriptions they share
    aggregate(captioner, images, found, full)
    aggregate(unfiltered, images, found, loose)
    alone(captioner, scenes, images, found, single)
    samples([captioner], FEW, scenes, images, checked[:1])
    samples([captioner, unfiltered], MANY, scenes, images, [checked[1], many])
    return [single, *checked, many, full, loose]


def filtered_name(count: int) -> str:
    """The row that has samples and the filter, and no patches."""
    return f"{count} global samples, same filter"


@dataclass(frozen=True)
class Part:
    """Rows that are made together: those without pruning (`row` None), or one on the first of the scenes."""

    name: str
    method: str = "none"
    keep: float | None = None
    row: str | None = None
    view: str | None = None
    small: bool = False  # whether the small model describes and scores

    def run(
        self, models: tuple[Any, Any], processor: Any, scenes: Any, config: CaptionConfig, seed: int
    ) -> list[CaptionRow]:
        """Its rows on a group of scenes.

        Raises:
            VlmpruneError: the method does not fit the model.
        """
        options: dict[str, Any] = {} if self.keep is None else {"keep": self.keep}
        options |= {"guide": models[1]} if self.method == "sgl" else {}
        with vlmprune.wrap(models[self.small], self.method, processor=processor, **options) as handle:
            if self.row is None:
                return unpruned(handle, scenes, config, seed)
            row = CaptionRow(self.row, self.method, self.keep)
            shown = config if self.view is None else replace(config, view=self.view)
            captioner, images = PatchCaptioner(handle, config=shown, seed=seed), [scene.image() for scene in scenes]
            aggregate(captioner, images, described(captioner, images, row), row)
            return [row]


def parts(methods: Sequence[str], view: str) -> list[Part]:
    """What is run on the first of the scenes: crops blown up, no pruning, the small model, every method and budget."""
    found = [] if view == "crop" else [Part("crops blown up", row=f"{PATCHES}, crops blown up", view="crop")]
    found.append(Part("unpruned again", row=PATCHES))
    found.append(Part("small alone", row=f"{PATCHES}, small model alone", small=True))
    return found + [Part(f"{name} {keep:g}", name, keep, PATCHES) for name in methods for keep in KEEPS]


def table(
    work: Sequence[tuple[Part, Sequence[Scene]]], done: Record, run: Callable[[Part, Sequence[Scene]], list[CaptionRow]]
) -> tuple[list[list[CaptionRow]], list[dict[str, Any]]]:
    """The rows of every part over its scenes, from the record where they are there; what could not run, with why."""
    total, start, made = sum(-(-len(scenes) // TOGETHER) for _, scenes in work), time.monotonic(), 0
    rows: list[list[CaptionRow]] = []
    skipped = []
    number = 0
    for part, scenes in work:
        found: dict[Any, CaptionRow] = {}
        for at, group in enumerate(groups(scenes)):
            number += 1
            name = f"{part.name}/{at}"
            if name not in done.done:
                try:
                    done.append([{"id": name, "rows": [asdict(row) for row in run(part, group)]}])
                except vlmprune.VlmpruneError as error:
                    skipped.append({"method": part.method, "keep": part.keep, "why": str(error)})
                    print(f"SKIPPED {part.name}: {error}", flush=True)
                    break
                made += 1
                left = (time.monotonic() - start) / made * (total - number) / 60
                print(f"{part.name}: portion {number} of {total}, about {left:.0f} min left", flush=True)
            for line in done.done[name]["rows"]:
                row = CaptionRow(**{**line, "cost": CaptionCost(**line["cost"])})
                found.setdefault(row.key, CaptionRow(*row.key)).join(row)
        rows.append(list(found.values()))
    return rows, skipped


def differences(found: Mapping[str, list[Counts]]) -> dict[str, Any]:
    """Every row minus one caption, and minus the samples that have the same filter."""
    return {
        f"{name} minus {other}": difference(found[other], counts)
        for other in (REFERENCE, filtered_name(FEW), filtered_name(MANY))
        for name, counts in found.items()
        if name != other
    }


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
    parser.add_argument("--records", type=Path, default=Path("runs/captions"), help="finished portions, to go on from")
    args = parser.parse_args()

    large, small, processor = vlmprune.load_tiny()
    models = (large, small) if args.model == "large" else (small, small)
    config = replace(BUNDLED_CONFIG, batch_size=32, view=args.view, keep_score=args.keep_score)
    scenes = held_out(args.scenes, args.start, args.split)
    few = scenes[: args.pruned_scenes]
    identity = {
        "model": args.model,
        "weights": [weights_hash(model) for model in models],
        "config": asdict(config),
        "split": args.split,
        "start": args.start,
        "seed": args.seed,
        "scenes": args.scenes,
        "pruned_scenes": args.pruned_scenes,
    }
    work = [(Part("unpruned"), scenes)] + [(part, few) for part in parts(args.methods, args.view) if few]
    (rows, *more), skipped = table(
        work,
        Record(args.records, identity, option="--records"),
        lambda part, group: part.run(models, processor, group, config, args.seed),
    )
    pruned = [row for made in more for row in made]
    whole = next((row.counts(few) for row in pruned if row.key == (PATCHES, "none", None)), [])
    record = {
        "rows": [row.record(scenes) for row in rows],
        "pruned": [row.record(few) | {"vs_unpruned": difference(whole, row.counts(few))} for row in pruned],
        "skipped": skipped,
        "differences": differences({row.name: row.counts(scenes) for row in rows}),
        "settings": {
            "scenes": f"{args.split} split, 4 to 8 objects",
            "first_seed": args.start,
            "seed": args.seed,
            "config": asdict(config),
        },
        "provenance": provenance(model=f"the bundled {args.model} model", backend=backend(models[0])),
    }
    print(tables.table([*record["rows"], *record["pruned"]]))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
