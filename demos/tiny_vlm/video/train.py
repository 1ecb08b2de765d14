"""Train a pair for clips from the bundled one, whose tower stays as it is; stopped at any time, it goes on exactly.

    python -m demos.tiny_vlm.video.train --work DIR --which large --steps 12000
    python -m demos.tiny_vlm.video.train --work DIR --which large --steps 12000 --more 4000
    python -m demos.tiny_vlm.video.train --work DIR --which large --device cuda --batch 4 --workers 3 --seconds 200
    python -m demos.tiny_vlm.video.train --work DIR --which large --export DIR2     the moving average as it stands

Stock LLaVA-OneVision: each frame's 14 x 14 patches are pooled to 7 x 7, eight frames are 392 tokens and a newline.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from vlmprune.tiny import WEIGHTS

from ..common import State, log
from ..language import DROP_FRACTION, EARLY_WEIGHT, SPOT_WEIGHT
from ..packing import Packed, drop_uniformly, early_loss, pack, read, right_answers, spot_loss
from ..pair import TEXT, export, greedy, text_config
from ..questions import Question, by_scene
from ..stepper import Stepper, add_options, moved
from ..tower import MEAN, STD, tower_config
from ..vocabulary import CANVAS, IDS
from .clips import FRAMES, ClipScene, make_clip
from .processor import export_clip_processor
from .questions import FAMILIES, ask_clip, clip_benchmark

RATE = {"large": 6e-4, "small": 2e-3}
BATCH = 4
TOKENS = FRAMES * 49 + 1


def build(which: str) -> LlavaOnevisionForConditionalGeneration:
    """A model of the pair with the bundled weights; what they lack, the newline, is zero."""
    config = LlavaOnevisionConfig(
        vision_config=tower_config(),
        text_config=text_config(TEXT[which]),
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[CANVAS, CANVAS]],
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    model: Any = LlavaOnevisionForConditionalGeneration(config)
    bundled = {k: v.float() for k, v in load_file(str(WEIGHTS / which / "model.safetensors")).items()}
    missing, unexpected = model.load_state_dict(bundled, strict=False)
    if unexpected or set(missing) - {"model.image_newline", "lm_head.weight"}:
        raise RuntimeError(f"The bundled weights do not fit: {missing} are missing, {unexpected} are unknown.")
    with torch.no_grad():
        model.model.image_newline.zero_()
    model.model.vision_tower.requires_grad_(False)
    model.generation_config = greedy()
    return model


def clip_pixels(clips: list[ClipScene]) -> Tensor:
    """[B, T, 3, H, W] as the processor would give them."""
    stack = (np.stack([clip.pixels() for clip in clips]).astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(stack).permute(0, 1, 4, 2, 3).contiguous()


def visual_of(model: Any, values: Tensor) -> Tensor:
    """What the language model reads of clips: [B, V, D]."""
    out = model.model.get_video_features(
        values, vision_feature_layer=-1, vision_feature_select_strategy="default", output_hidden_states=True
    )
    found = out.pooler_output
    if found.shape[1] == TOKENS:
        return found
    # transformers 5.17 leaves the newline to the model's forward.
    return torch.cat((found, model.model.image_newline.expand(len(found), 1, -1)), 1)


def questions_about(rng: random.Random, clip: ClipScene, most: int = 10) -> list[Question]:
    """Different questions about a clip."""
    found: dict[str, Question] = {}
    for _ in range(30):
        question = ask_clip(clip, rng.choice(FAMILIES), rng)
        if question is not None and len(found) < most:
            found.setdefault(question.text, question)
    return list(found.values()) or [Question("change", "Is there a tile?", "no")]


@dataclass
class ShownClips:
    """What a step needs: clips [B, T, 3, H, W] and questions behind their tokens, those that are `kept` where some are
    dropped."""

    values: Tensor
    packed: Packed
    kept: Tensor | None


def shown_clips(batch: int, dropping: float, step: int, progress: float) -> ShownClips:
    """The step's lesson: clips of the next seeds, some questions about each."""
    rng = random.Random(step)
    clips = [make_clip(step * batch + i, "train") for i in range(batch)]
    rows = [questions_about(rng, clip) for clip in clips]
    kept, places = None, torch.arange(TOKENS)
    if rng.random() < dropping:
        kept = places = drop_uniformly(rng, TOKENS, rng.uniform(0, 0.5))
    return ShownClips(clip_pixels(clips), pack(rows, places.expand(batch, -1), TOKENS), kept)


class ClipTrainer(Stepper):
    """The training of one of the pair, with its state on disk; `options` are those of a `Stepper`."""

    def __init__(self, work: Path, which: str, dropping: float = DROP_FRACTION, **options: Any) -> None:
        super().__init__(**options)
        self.which = which
        self.model: Any = build(which).to(self.device)
        self.resume(State(self.model, RATE[which], work / f"clips-{which}", ema=0.998))
        self.lessons = partial(shown_clips, BATCH * self.batch, dropping)

    def loss(self, lesson: ShownClips) -> tuple[Tensor, Any, int]:
        """Of one step."""
        model, packed = self.model, lesson.packed
        with torch.autocast(self.device.type, torch.bfloat16):
            visual = visual_of(model, lesson.values)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.which == "large"):
            visual = visual if self.which == "large" else visual.float()
            ran = read(model, visual if lesson.kept is None else visual[:, lesson.kept], packed)
        answers = F.cross_entropy(model.lm_head(ran.last.float()[packed.where]), packed.target)
        loss = answers + EARLY_WEIGHT * early_loss(model, ran.last.float(), packed)
        if len(packed.spots[0]):
            loss = loss + SPOT_WEIGHT * spot_loss(ran, packed)
        self.state.meta["answers"] += len(packed.answers)
        return loss, answers.detach(), len(lesson.values)

    def look(self, number: int) -> None:
        """Validation accuracy of the moving average into the log."""
        self.state.swap()
        log(self.state.folder, step=self.state.meta["step"], **clip_accuracy(self.model, number))
        self.state.swap()


def clip_accuracy(model: Any, number: int, split: str = "validation") -> dict[str, float]:
    """Fraction of `number` questions a family answered exactly."""
    return {family: sum(right) / len(right) for family, right in clip_hits(model, number, split).items()}


@torch.no_grad()
def clip_hits(model: Any, number: int, split: str) -> dict[str, list[bool]]:
    """Whether each of `number` questions a family, each about a clip of its own, is answered exactly."""
    every = by_scene(pair for family in FAMILIES for pair in clip_benchmark(family, number, split))
    hits: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(every), BATCH):
        part = every[at : at + BATCH]
        visual = visual_of(model, clip_pixels([clip for clip, _ in part]).to(model.device))
        rows = [row for _, row in part]
        packed: Packed = moved(pack(rows, torch.arange(TOKENS).expand(len(part), -1), TOKENS), model.device)
        logits = model.lm_head(read(model, visual, packed).last[packed.where])
        for family, hit in right_answers(logits, packed):
            hits[family].append(hit)
    return dict(hits)


def main() -> None:
    """Train what is not finished, or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--which", choices=("large", "small"), required=True)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--more", type=int, default=0, help="steps on top of a finished run")
    parser.add_argument("--dropping", type=float, default=DROP_FRACTION, help="fraction of batches that lose tokens")
    parser.add_argument("--export", type=Path, help="write stock files of the moving average there, train nothing")
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    trainer = ClipTrainer(args.work, args.which, args.dropping, device=args.device, batch=args.batch, begin=args.begin)
    if args.export:
        if not (trainer.resumed or args.begin):
            raise SystemExit(f"There is no training state of the {args.which} model in {args.work}; train it first.")
        trainer.state.swap()
        export(trainer.model, args.export / args.which)
        export_clip_processor(args.export / args.which)
    else:
        trainer.run(args.steps, args.more, args)


if __name__ == "__main__":
    main()
