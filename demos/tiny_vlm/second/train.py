"""Train one of the second pair, in two stages that can be stopped at any time and go on exactly where they were.

    python -m demos.tiny_vlm.second.train --work DIR --which large --captions 3000 --answers 9000
    python -m demos.tiny_vlm.second.train --work DIR --which large --captions 3000 --answers 9000 --more 4000
    python -m demos.tiny_vlm.second.train --work DIR --which large --from AVERAGE --average AVERAGE2 --seconds 200 \\
        --device cuda --batch 8 --workers 3     last lessons on a GPU, as many as there is time for, from an average
    python -m demos.tiny_vlm.second.train --work DIR --which large --export DIR2      the moving average as it stands,
        in DIR2/112/large and DIR2/224/large: stock models for images of so many pixels a side

1. **Captions**: contrastive. The tower alone; every sentence about a thing must fit some patch of its image better
   than the same sentence with another word, and better than it fits the batch's other images. No patch has a label.
2. **Answers**: the language model on the tower, which is frozen for the first 60 % and then learns with it.

State is saved every ten minutes and when asked to stop (SIGTERM): weights, their average, the optimizer, the step.
What a step shows follows from its number alone, and nothing else is random, so a run that was stopped ends with the
same weights as one that was not (a test holds that).
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common import State, log
from ..language import DROP_FRACTION, EARLY_WEIGHT, FIRST_LESSONS, LAST_LESSONS, SPOT_WEIGHT
from ..packing import Packed, answer_logits, drop_uniformly, early_loss, gap_loss, pack, right_answers, run, spot_loss
from ..questions import FAMILIES, benchmark, by_scene
from ..scoring import HIGH
from ..stepper import Stepper, add_options, moved
from ..tower import pixels
from ..vocabulary import IDS
from .lessons import Captions, captions_lesson, captions_of, draw, image_of, questions_lesson
from .model import CANVASES, CONCEPTS, VALUES, Trainee

RATE = {"captions": {"large": 1.5e-3, "small": 2.5e-3}, "answers": {"large": 1.0e-3, "small": 2.5e-3}}
BATCH = {"captions": 24, "answers": 8}
TOWER_FACTOR = 0.5  # of the rate, for the tower in the second stage
ALIGN_WEIGHT = 0.3
CAPTIONS_SHARE = 0.15  # of so many seconds, where they are given, are the first stage's


def caption_loss(scores: Tensor, captions: Captions) -> tuple[Tensor, float]:
    """Every sentence must fit some patch of its image better than the same sentence with another word, attribute by
    attribute, and better than it fits other images; and how often it does the former.

    How well a sentence fits an image is its best patch's sum over its words, smoothly: the logarithm of the sum of
    exponentials over patches.

    Args:
        scores: of every concept at every patch, [B, V, C].
    """
    own = scores[captions.image]  # [N, V, C]
    whole = (own @ captions.said[..., None])[..., 0]
    losses, right, at = [], [], 0
    for values in VALUES.values():
        part = slice(at, at + len(values))
        at += len(values)
        said = captions.said[:, part]
        rows = said.any(1)
        if not rows.any():
            continue
        mine = own[rows, :, part]
        rest = whole[rows] - (mine @ said[rows][..., None])[..., 0]
        fit = torch.logsumexp(rest[..., None] + mine, dim=1)
        allowed = (said + captions.other[:, part])[rows] > 0
        fit = fit.masked_fill(~allowed, -1e4)
        target = said[rows].argmax(1)
        losses.append(F.cross_entropy(fit, target))
        right.append(float((fit.argmax(1) == target).float().mean()))
    everywhere = torch.logsumexp(torch.einsum("bvc,nc->nbv", scores, captions.said), dim=2)
    others = captions.fits & ~F.one_hot(captions.image, len(scores)).bool()
    images = F.cross_entropy(everywhere.masked_fill(others, -1e4), captions.image)
    return torch.stack(losses).mean() + 0.3 * images, sum(right) / len(right)


def concept_words(table: Tensor) -> Tensor:
    """Embeddings [C, D] of the concepts: the sum of their words' rows."""
    return torch.stack([F.normalize(table[[IDS[w] for w in name.split()]], dim=-1).sum(0) for name in CONCEPTS])


@dataclass
class Shown:
    """What a step needs of a lesson: images (B, 3, canvas, canvas); in the first stage captions, in the second
    questions behind the visual tokens, which of these are `kept` where some are dropped, and captions while they count.
    """

    values: Tensor
    progress: float
    captions: Captions | None = None
    packed: Packed | None = None
    kept: Tensor | None = None


def shown_captions(batch: int, step: int, progress: float) -> Shown:
    """The step's lesson of the first stage."""
    rng = random.Random(step)
    lesson = captions_lesson(rng, step * batch, batch, progress)
    return Shown(lesson.values, progress, captions_of(rng, lesson.scenes))


def shown_questions(batch: int, patch: int, dropping: float, step: int, progress: float) -> Shown:
    """The step's lesson of the second stage, for a tower with patches of so many pixels a side."""
    rng = random.Random(step)
    lesson = questions_lesson(rng, step * batch, batch, progress)
    visual = (lesson.values.shape[-1] // patch) ** 2
    kept, places = None, torch.arange(visual)
    if progress > FIRST_LESSONS and rng.random() < dropping:
        kept = places = drop_uniformly(rng, visual, rng.uniform(0, 0.5))
    packed = pack(lesson.rows, places.expand(len(lesson.rows), -1), visual)
    aligned = kept is None and progress < LAST_LESSONS
    return Shown(lesson.values, progress, captions_of(rng, lesson.scenes) if aligned else None, packed, kept)


class Trainer(Stepper):
    """One stage of one model, with its state on disk; `options` are those of a `Stepper`."""

    def __init__(self, work: Path, which: str, stage: str, dropping: float = DROP_FRACTION, **options: Any) -> None:
        super().__init__(**options)
        self.which, self.stage = which, stage
        trainee = Trainee(which)
        # The first stage trains the tower, its positions and the concepts; the second all but the concepts.
        trainee.model.requires_grad_(False)
        trainee.tower.requires_grad_(True)
        if stage == "answers":
            before = State(trainee, 0.0, work / which / "captions")
            if before.load():
                before.swap()
            trainee.model.requires_grad_(True)
            trainee.concepts.requires_grad_(False)
        self.trainee = trainee.to(self.device)
        slow = torch.nn.ModuleList([trainee.tower]) if stage == "answers" else None
        folder = work / which / stage
        self.resume(State(trainee, RATE[stage][which], folder, ema=0.998, slow=slow, factor=TOWER_FACTOR))
        images = BATCH[stage] * self.batch
        self.lessons = (
            partial(shown_captions, images)
            if stage == "captions"
            else partial(shown_questions, images, trainee.patch, dropping)
        )

    def loss(self, lesson: Shown) -> tuple[Tensor, Any, int]:
        """Of one step of the stage."""
        return (self._captions if self.stage == "captions" else self._answers)(lesson)

    def _captions(self, lesson: Shown) -> tuple[Tensor, Any, int]:
        assert lesson.captions is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.which == "large"):
            features = self.trainee.features(lesson.values)
        loss, right = caption_loss(self.trainee.concepts(features.float()), lesson.captions)
        return loss, right, len(lesson.values)

    def _answers(self, lesson: Shown) -> tuple[Tensor, Any, int]:
        model: Any = self.trainee.model
        packed = lesson.packed
        assert packed is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.which == "large"):
            with torch.set_grad_enabled(lesson.progress >= LAST_LESSONS):
                features = self.trainee.features(lesson.values)
            ran = run(model, features if lesson.kept is None else features[:, lesson.kept], packed)
        logits = model.lm_head(ran.last.float()[packed.where])
        each = F.cross_entropy(logits, packed.target, reduction="none")
        loss = (each * packed.weight).sum() / packed.weight.sum()
        watched = loss.detach()
        self.state.meta["answers"] += len(packed.answers)
        if len(packed.early[0]):
            loss = loss + EARLY_WEIGHT * early_loss(model, ran.last.float(), packed)
        if len(packed.spots[0]):
            loss = loss + SPOT_WEIGHT * spot_loss(ran, packed)
        if self.which == "large" and len(packed.gaps[0]):
            loss = loss + SPOT_WEIGHT * gap_loss(ran, packed)
        if lesson.captions is not None:
            words = concept_words(model.model.language_model.embed_tokens.weight)
            scores = 8 * F.normalize(ran.visual.float(), dim=-1) @ words.T
            loss = loss + ALIGN_WEIGHT * caption_loss(scores, lesson.captions)[0]
        return loss, watched, len(lesson.values)

    def look(self, number: int) -> None:
        """Validation accuracy of the moving average into the log, in both worlds; the first stage answers nothing."""
        if self.stage == "captions":
            return
        self.state.swap()
        for world in (False, True):
            found = accuracy(self.trainee, world, number)
            log(self.state.folder, step=self.state.meta["step"], world="photographs" if world else "plain", **found)
        self.state.swap()


@torch.no_grad()
def accuracy(trainee: Trainee, photographs: bool, number: int, split: str = "validation") -> dict[str, float]:
    """Fraction of `number` questions a family answered exactly, on scenes of a world at 112 px; of counts of three to
    six too."""
    make = partial(draw, photographs)
    every = by_scene(pair for family in FAMILIES for pair in benchmark(family, number, split, make=make))
    hits: dict[str, list[bool]] = defaultdict(list)
    device = trainee.coarse.device
    for at in range(0, len(every), 8):
        part = every[at : at + 8]
        features = trainee.features(pixels([image_of(scene) for scene, _ in part]).to(device))
        places = torch.arange(features.shape[1]).expand(len(part), -1)
        rows = [questions for _, questions in part]
        packed = moved(pack(rows, places, features.shape[1]), device)
        asked = [question for row in rows for question in row]
        for question, (family, hit) in zip(
            asked, right_answers(answer_logits(trainee.model, features, packed), packed), strict=True
        ):
            hits[family].append(hit)
            if family == "count" and question.answer in HIGH:
                hits["count_3_to_6"].append(hit)
    return {family: sum(right) / len(right) for family, right in hits.items()}


def main() -> None:
    """Train what is not finished, or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--which", choices=("large", "small"), required=True)
    parser.add_argument("--captions", type=int, default=3000, help="steps of the first stage")
    parser.add_argument("--answers", type=int, default=9000, help="steps of the second stage")
    parser.add_argument("--more", type=int, default=0, help="steps on top of a finished second stage")
    parser.add_argument("--dropping", type=float, default=DROP_FRACTION, help="fraction of batches that lose tokens")
    parser.add_argument("--export", type=Path, help="write stock files of the moving average there, train nothing")
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    here = {"device": args.device, "batch": args.batch}
    answers = partial(Trainer, args.work, args.which, "answers", args.dropping, begin=args.begin, **here)
    if args.export:
        trainer = answers()
        if not (trainer.resumed or args.begin):
            raise SystemExit(f"There is no training state of the {args.which} model in {args.work}; train it first.")
        trainer.state.swap()
        for canvas in CANVASES:
            trainer.trainee.export(args.export / str(canvas) / args.which, canvas)
        return
    if not args.begin:
        first = Trainer(args.work, args.which, "captions", **here)
        if not first.train(args.captions, seconds=CAPTIONS_SHARE * args.seconds, workers=args.workers):
            return
        args.seconds *= 1 - CAPTIONS_SHARE
    trainer = answers()
    trainer.run(args.answers, args.more, args)


if __name__ == "__main__":
    main()
