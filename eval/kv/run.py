"""What a cut of the cache changes in long answers, second questions and a needle among many images.

    python -m eval.kv.run --out eval/kv/results/scenes.json

The first token of an answer comes from the prompt, so questions of one token would show nothing. Three tasks:

captions   the image is described; the cut sees the request. Held-out scenes with 4 to 8 objects.
second     another question is asked and answered first, the cache is cut behind it, and then the image is described.
needle     32 images of one object each; after another question and the cut, the only digit among them is asked for.
           25 evenly spaced tokens of each image enter the model in every row, and positions are numbered anew: 6,272
           tokens are more than the bundled model was made for.

Every row is forced to say what the model with the full cache says: how often its likeliest token is the same one, and
how far its distribution is (KL, nats per token). It also answers freely: objects found, or the digit. Intervals are
paired by scene. All rows of a task run on the same scenes, from the same prompts.

The same command again goes on where a killed one stopped: finished portions lie in `--records`.
"""

from __future__ import annotations

import argparse
import copy
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vlmprune
from demos.tiny_vlm.scenes import Scene, make_scene
from eval.captions.metrics import count
from eval.captions.run import held_out
from eval.kv import tables
from eval.kv.rows import KVRow, Size, label, listed
from eval.provenance import provenance, write_record
from eval.record import Record
from vlmprune.harness.measure import backend
from vlmprune.harness.models import weights_hash
from vlmprune.hf.compatibility import CACHE
from vlmprune.inputs.chat import prepare

DESCRIBE, FIRST, NEEDLE = "Describe this image in detail.", "How many objects are there?", "Which digit is on the tile?"
TOGETHER = 20  # scenes of one image in a batch
LONGEST = 130  # tokens of a description
IMAGES, LEFT = 32, 25  # of a needle's prompt, and tokens of each that enter the model


@dataclass(frozen=True)
class Portion:
    """Prompts that run side by side, all of one length: `inputs` of the cut, `after` [B, T] comes next."""

    scenes: list[Scene]
    inputs: dict[str, Tensor]
    after: Tensor | None
    size: Size


@dataclass(frozen=True)
class KVTask:
    """A task: its prompts in portions, and whether tokens of each image are dropped before anything is measured."""

    name: str
    scenes: int
    pruned: bool = False


TASKS = {task.name: task for task in (KVTask("captions", 40), KVTask("second", 40), KVTask("needle", 20, True))}


def asked(processor: Any, images: Sequence[Any], question: str) -> dict[str, Tensor]:
    """A batch of one image each, all with the same question."""
    parts = [prepare(processor, image, question) for image in images]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def suffix(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The tokens of a prompt after its last image."""
    visual = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    return inputs["input_ids"][:, int(visual[-1]) + 1 :]


def portions(task: KVTask, number: int, model: Any, processor: Any) -> Iterator[Portion]:
    """The prompts of a task."""
    if task.name == "needle":
        for scenes, target in needles(number):
            images = [scene.image() for scene in scenes]
            inputs = dict(prepare(processor, images, FIRST))
            question = suffix(model, prepare(processor, images[:1], NEEDLE))
            yield Portion([target], inputs, question, Size(IMAGES, LEFT, suffix(model, inputs).shape[1]))
        return
    scenes = held_out(number)
    for at in range(0, number, TOGETHER):
        own = scenes[at : at + TOGETHER]
        images = [scene.image() for scene in own]
        inputs = asked(processor, images, DESCRIBE)
        after: Tensor | None = None
        if task.name == "second":
            after = suffix(model, inputs)
            inputs = asked(processor, images, FIRST)
        text = suffix(model, inputs).shape[1]
        yield Portion(own, inputs, after, Size(1, inputs["input_ids"].shape[1] - text, text))


def needles(number: int) -> Iterator[tuple[list[Scene], Scene]]:
    """Test scenes of one object, 32 in a prompt, of which one has a digit."""
    tiles: list[Scene] = []
    others: list[Scene] = []
    seed = 0
    while len(tiles) < number or len(others) < 4 * IMAGES:
        scene = make_scene(seed, "test", max_things=1)
        seed += 1
        (others if scene.things[0].digit is None else tiles).append(scene)
    rng = random.Random(0)
    for tile in tiles[:number]:
        scenes = rng.sample(others, IMAGES - 1)
        scenes.insert(rng.randrange(IMAGES), tile)
        yield scenes, tile


class Answering:
    """Runs one way to answer on a portion."""

    def __init__(self, model: Any, processor: Any, task: KVTask, row: KVRow | None, keep: float | None) -> None:
        self.model, self.processor, self.task, self.row, self.keep = model, processor, task, row, keep
        self.end = processor.tokenizer.eos_token_id

    def methods(self, portion: Portion) -> Any:
        """What the model is wrapped with; a task that drops tokens does so in every row."""
        made: Any = "none" if self.row is None else self.row.make(float(self.keep or 1), portion.size)
        if not self.task.pruned:
            return made
        options: dict[str, Any] = {"layer": 0, "positions": "compact"}
        if self.row is not None and self.row.prunes:
            return type(made)(keep=made.keep, **options)
        base = vlmprune.Uniform(LEFT, **options)
        return base if self.row is None else [base, made]

    @torch.no_grad()
    def run(self, portion: Portion, forced: Tensor | None) -> dict[str, Any]:
        """Log-probabilities [B, T, words] of the forced tokens, what is said freely, and the cache's bytes.

        `forced`: [B, T], what the model with the full cache says; None: what is said freely.
        """
        with vlmprune.wrap(self.model, self.methods(portion), processor=self.processor) as pruned:
            cache, logits, report = self.begun(pruned, portion)
            free = self.said(copy.deepcopy(cache), logits)
            log = self.forced(cache, logits, free if forced is None else forced)
        return {"kv": report.kv_bytes, "tokens": free, "texts": [self.text(own) for own in free], "log": log}

    def begun(self, pruned: Any, portion: Portion) -> tuple[Any, Tensor, Any]:
        """The cache before what is measured, logits of the first token of that, and the prompt's report."""
        out = self.model(**portion.inputs, use_cache=True)
        cache, report = out["past_key_values"], pruned.report
        if portion.after is None:
            return cache, out.logits[:, -1], report
        answer = out.logits[:, -1:].argmax(-1)  # of the first question, one token and an end
        after = portion.after.expand(len(answer), -1)
        more = torch.cat([answer, torch.full_like(answer, self.end), after], dim=1)
        return cache, self.stepped(cache, more)[:, -1], report

    def stepped(self, cache: Any, tokens: Tensor) -> Tensor:
        """Logits behind each of the tokens: at once, or one by one where a method acts in steps."""
        if self.row is None or not self.row.reads:
            return self.model(input_ids=tokens, **{CACHE: cache}).logits
        return torch.cat([self.model(input_ids=one, **{CACHE: cache}).logits for one in tokens.split(1, dim=1)], dim=1)

    def forced(self, cache: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        rest = self.stepped(cache, tokens[:, :-1]) if tokens.shape[1] > 1 else logits[:, None, :][:, :0]
        return torch.cat([logits[:, None], rest], dim=1).log_softmax(-1)

    def said(self, cache: Any, logits: Tensor) -> Tensor:
        """Greedy tokens [B, T], filled with ends."""
        tokens = [logits.argmax(-1, keepdim=True)]
        ended = tokens[0] == self.end
        while not bool(ended.all()) and len(tokens) < (1 if self.task.pruned else LONGEST):
            step = self.model(input_ids=tokens[-1], **{CACHE: cache}).logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(step.masked_fill(ended, self.end))
            ended |= tokens[-1] == self.end
        return torch.cat(tokens, dim=1)

    def text(self, tokens: Tensor) -> str:
        return str(self.processor.tokenizer.decode(tokens, skip_special_tokens=True))


@contextmanager
def towers_once(model: Any) -> Iterator[None]:
    """The images of a portion go through the vision tower once: no row changes what comes out of it."""
    tower = model.model.vision_tower
    forward, seen = tower.forward, {}

    def remembered(pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        key = pixel_values.data_ptr()
        if key not in seen:
            seen[key] = pixel_values, forward(pixel_values, *args, **kwargs)
        return seen[key][1]

    tower.forward = remembered
    try:
        yield
    finally:
        del tower.forward


def scored(
    task: KVTask, portion: Portion, full: dict[str, Any], found: dict[str, Any], end: int
) -> list[dict[str, Any]]:
    """Per scene: sums over its tokens, those that the cut can change, and what was found in its free answer."""
    lines = []
    first = 1 if portion.after is None else 0  # the prompt's own token is the same in every row
    for b, scene in enumerate(portion.scenes):
        ends = (full["tokens"][b] == end).nonzero()
        length = int(ends[0, 0]) + 1 if len(ends) else full["tokens"].shape[1]
        whole, own = full["log"][b, first:length], found["log"][b, first:length]
        line: dict[str, Any] = {
            "tokens": len(whole),
            "agreed": int((whole.argmax(-1) == own.argmax(-1)).sum()),
            "kl": float((whole.exp() * (whole - own)).sum()),
        }
        said = found["texts"][b]
        if task.pruned:
            line |= {"found": int(said.strip() == str(scene.things[0].digit)), "objects": 1}
        else:
            counts = count(said, scene)
            line |= {"found": counts.matched, "objects": counts.objects}
        lines.append(line)
    return lines


def measured(task: KVTask, number: int, names: Sequence[str] | None, models: tuple[Any, Any], done: Record) -> None:
    """Every row of a task into the record; what is there already is left out."""
    model, processor = models
    end = processor.tokenizer.eos_token_id
    rows = listed(names)
    start, commit = time.process_time(), provenance()["commit"]
    for at, portion in enumerate(portions(task, number, model, processor)):
        ids = [f"{task.name}/{label(*row)}/{at}" for row in rows]
        if all(name in done.done for name in ids):
            continue
        with towers_once(model):
            full = Answering(model, processor, task, None, None).run(portion, None)
            for name, (row, keep) in zip(ids, rows, strict=True):
                if name in done.done:
                    continue
                began = time.process_time()
                found = (
                    full if row is None else Answering(model, processor, task, row, keep).run(portion, full["tokens"])
                )
                lines = scored(task, portion, full, found, end)
                spent = time.process_time() - began
                done.append(
                    [{"id": name, "scenes": lines, "kv": found["kv"] / full["kv"], "seconds": spent, "commit": commit}]
                )
        print(f"{task.name}: portion {at + 1}, {time.process_time() - start:.0f} s of CPU", flush=True)


def main() -> None:
    """Run, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--scenes", type=int, help="of every task, in place of its own number")
    parser.add_argument("--rows", nargs="+", help="names of rows; default: all")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--records", type=Path, default=Path("runs/kv"), help="finished portions, to go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # A question that comes later is meant to find what the first one has left.
    warnings.filterwarnings("ignore", message=".*by the first piece of this prompt")
    large, _, processor = vlmprune.load_tiny()
    numbers = {name: args.scenes or TASKS[name].scenes for name in args.tasks}
    done = Record(args.records, {"weights": weights_hash(large), "together": TOGETHER}, option="--records")
    for name, number in numbers.items():
        measured(TASKS[name], number, args.rows, (large, processor), done)
    record: dict[str, Any] = {
        "tasks": {name: tables.summary(name, number, listed(args.rows), done.done) for name, number in numbers.items()},
        "settings": {"scenes": numbers, "split": "test", "describe": DESCRIBE, "first": FIRST, "needle": NEEDLE},
        "commits": sorted({line["commit"] for line in done.done.values()}),
        "provenance": provenance(model="the bundled large model", backend=backend(large), seed=0),
    }
    for name in record["tasks"]:
        print(tables.table(record, name))
    write_record(record, args.out)


if __name__ == "__main__":
    main()
