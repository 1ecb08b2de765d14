"""Stage 2: the language models learn to answer, on the frozen tower; large and small see the same mix."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from vlmprune.inputs.images import read_image
from vlmprune.tiny import WEIGHTS

from .common import State, log
from .labels import patch_cover
from .packing import Packed, drop_uniformly, early_loss, encode_text, gap_loss, pack, run, spot_loss
from .pair import build_model
from .questions import Question, ask
from .scenes import make_scene, render
from .scoring import measure, scene_questions
from .tower import encode, pixels, random_windows, window_places
from .vocabulary import COLOURS, GRID, IDS, SHAPES, SUPERLATIVES

# Questions asked about each image until the token budget is used up, drawn by weight.
MIX = {
    "colour": 1.0,
    "shape": 1.0,
    "existence": 2.2,
    "count": 3.5,
    "relation": 2.5,
    "position": 1.3,
    "digit": 2.4,
    "caption": 0.25,
    "judge": 1.2,
}
# The first lessons: what colour, what shape, where, which digit, of things that share neither colour nor shape.
FIRST_MIX = {"colour": 1.0, "shape": 1.0, "position": 0.7, "digit": 0.7}
# To compare two places with a direction is the last thing to be learnt, and with two things the soonest.
PAIR_MIX = {"relation": 3.0, "judge": 1.5, "position": 1.0}
FIRST_LESSONS, SECOND_LESSONS = 0.15, 0.4  # of the run, until which they go on
# From here on scenes come as full as they are in the tests: with few things most counts are one or two, and models that
# saw mostly those called three and more one fewer.
LAST_LESSONS = 0.6
LAST_MIX = {**MIX, "colour": 3.0, "count": 8.0, "relation": 3.0, "digit": 1.5}
TOKENS = 150  # text tokens per image
EASY_VQA_SHARE = 0.08
EARLY_WEIGHT = 0.4
SPOT_WEIGHT = 0.2
SHARE_WEIGHT = 0.2
DROP_FRACTION = 0.3  # of the batches lose a fraction of their visual tokens, drawn from 0 to 50 %, all tokens alike
PLACES = ("top", "bottom", "left", "right", "center")
LEARNING_RATE = {"large": 1.0e-3, "small": 2.5e-3}


def names_an_extreme(question: Question) -> bool:
    """Whether it names a thing by a superlative ("the leftmost tile"), which takes a comparison first."""
    return not SUPERLATIVES.keys().isdisjoint(question.text.split())


def questions_for(rng: random.Random, scene: Any, mix: dict[str, float] = MIX) -> list[Question]:
    """Different questions about a scene within the token budget."""
    chosen: list[Question] = []
    seen: set[str] = set()
    spent, tries = 0, 0
    while spent < TOKENS and tries < 40:
        tries += 1
        family = rng.choices(list(mix), list(mix.values()))[0]
        question = ask(scene, family, rng)
        if question is None or question.text in seen or (mix is FIRST_MIX and names_an_extreme(question)):
            continue
        size = len(encode_text(question.text)) + len(encode_text(question.answer)) + 2
        if spent + size > TOKENS + 20:
            continue
        seen.add(question.text)
        chosen.append(question)
        spent += size
    return chosen or [ask(scene, "caption", rng) or Question("count", "How many objects are there?", "0")]


def scenes_for(rng: random.Random, first: int, batch: int, progress: float) -> tuple[list[Any], dict[str, float]]:
    """A batch of scenes on windows of one size, and the mix of questions to ask about them.

    Scenes are full of things that share a colour or a shape, so that most questions need two looks. Among those alone
    a model stays on a plateau for thousands of steps: it names the colour of some thing, and with two things of one
    colour that is right often enough. So the first lessons show two or three things that differ in both.
    """
    if progress < FIRST_LESSONS:
        size = rng.randint(8, 11)
        windows = [(rng.randint(0, GRID - size), rng.randint(0, GRID - size), size, size) for _ in range(batch)]
        return [distinct_scene(first + i, w, rng.choice((2, 3))) for i, w in enumerate(windows)], FIRST_MIX
    windows = random_windows(rng, batch, full=0.4 if progress < LAST_LESSONS else 0.7)
    if progress >= LAST_LESSONS and rng.random() < 0.8:
        return [make_scene(first + i, "train", window=w, digits=1.2) for i, w in enumerate(windows)], LAST_MIX
    if rng.random() < 0.25 and min(windows[0][2:]) >= 8:
        return [distinct_scene(first + i, w, 2) for i, w in enumerate(windows)], PAIR_MIX
    share = 0.5 if progress < SECOND_LESSONS else 0.2
    if rng.random() < share and min(windows[0][2:]) >= 8:
        return [distinct_scene(first + i, w, rng.choice((2, 3, 4))) for i, w in enumerate(windows)], MIX
    # Half of the batches hold few things: among eight, yes and no stay at chance for thousands of steps.
    most = rng.choice((1, 2, 3)) if rng.random() < 0.5 else 8
    return [make_scene(first + i, "train", window=w, max_things=most, digits=1.2) for i, w in enumerate(windows)], MIX


def distinct_scene(seed: int, window: tuple[int, int, int, int], most: int) -> Any:
    """The first scene from `seed` on, in steps that leave other scenes' seeds alone, whose things all differ."""
    for attempt in range(400):
        scene = make_scene(seed + attempt * 10_000_000, "train", window=window, max_things=most, digits=1.2)
        things = len(scene.things)
        if things >= 2 and things == len({t.shape for t in scene.things}) == len({t.colour for t in scene.things}):
            break
    return scene


class EasyVqa:
    """The training split of the public easy-vqa package, questions grouped by image."""

    def __init__(self) -> None:
        import easy_vqa

        texts, answers, numbers = easy_vqa.get_train_questions()
        self.paths = easy_vqa.get_train_image_paths()
        self.rows: dict[int, list[Question]] = defaultdict(list)
        for text, answer, number in zip(texts, answers, numbers, strict=True):
            self.rows[number].append(Question("easy_vqa", text, answer))
        self.numbers = sorted(self.rows)

    def batch(self, rng: random.Random, size: int) -> tuple[list[np.ndarray], list[list[Question]]]:
        """Images enlarged to the canvas as the processor does, and their questions."""
        chosen = rng.sample(self.numbers, size)
        return [enlarged(self.paths[n]) for n in chosen], [self.rows[n] for n in chosen]


def enlarged(path: str) -> np.ndarray:
    """An image at the canvas size, uint8 (112, 112, 3)."""
    return np.asarray(read_image(Path(path)).resize((GRID * 8, GRID * 8), Image.Resampling.BICUBIC))


def align_loss(model: Any, visual: Tensor, labels: dict[str, Tensor]) -> Tensor:
    """Projected patches should resemble the words for what they show: shape, colour, digit, and (every patch) place."""
    table = model.model.language_model.embed_tokens.weight
    unit = F.normalize(visual, dim=-1) * 8
    loss = visual.new_zeros(())
    vocabularies = {"shape": SHAPES, "colour": tuple(COLOURS), "digit": tuple("0123456789"), "place": PLACES}
    for name, names in vocabularies.items():
        target = labels[name].reshape(-1)
        some = target >= 0
        if some.any():
            words = F.normalize(table[[IDS[word] for word in names]], dim=-1)
            loss = loss + F.cross_entropy((unit.reshape(-1, unit.shape[-1])[some]) @ words.T, target[some])
    return loss


def share_loss(visual: Tensor, shares: Tensor) -> Tensor:
    """A projected patch [B, V, D] of a thing should know which fraction of the thing it shows; `shares` [B, V], else 0.

    A softmax averages, so models count by how many patches match, and a large thing has ten times the patches of a
    small one. Weighted by these fractions, patches add up to things.
    """
    some = shares > 0
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(visual.shape[-1] // 4)
    read = 4 * (F.rms_norm(visual[some].float(), visual.shape[-1:]) * signs).mean(-1)
    return F.mse_loss(read, (shares[some].log().clamp_min(-5) + 2) / 1.5)


def patch_words(scene: Any) -> dict[str, np.ndarray]:
    """Index of the word for each patch's shape, colour and digit (-1 = none), and for its third of the canvas; `share`
    for `share_loss`."""
    cover, owner = (table.reshape(-1) for table in patch_cover(scene))
    shares = patch_shares(cover, owner)
    owner = np.where(cover > 0.4, owner, -1)  # a word only where the thing fills much of the patch
    row, col, rows, cols = scene.window

    def table(values: list[int]) -> np.ndarray:
        return np.array([*values, -1])[owner]

    r = np.repeat(np.arange(row, row + rows), cols) * 3 // GRID
    c = np.tile(np.arange(col, col + cols), rows) * 3 // GRID
    vertical, horizontal = np.where(r == 1, -1, r // 2), np.where(c == 1, -1, 2 + c // 2)
    # A corner has two words: alternate between them, so that both are learnt.
    odd = (np.arange(len(r)) % 2).astype(bool)
    place = np.where((r == 1) & (c == 1), 4, np.where((vertical >= 0) & ((horizontal < 0) | odd), vertical, horizontal))
    return {
        "shape": table([list(SHAPES).index(t.shape) for t in scene.things]),
        "colour": table([list(COLOURS).index(t.colour) for t in scene.things]),
        "digit": table([-1 if t.digit is None else t.digit for t in scene.things]),
        "place": place,
        "share": shares,
    }


def patch_shares(cover: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The fraction of its thing that each patch shows, [V] float32, 0 without a thing; both [V], of `patch_cover`."""
    mass = np.bincount(owner[owner >= 0], cover[owner >= 0])
    return np.where(owner >= 0, cover / np.append(mass, 1)[owner], 0).astype(np.float32)


def started(work: Path, which: str, more: float) -> State:
    """One of the pair with its training state: as saved in `work`, else as bundled (the tower alone without `more`)."""
    trained = work / "tower.safetensors"
    model = build_model(which, trained if trained.exists() else None)
    state = State(model, LEARNING_RATE[which], work / which, ema=0.998)
    if not state.load() and (more or not trained.exists()):
        bundled = {k: v.float() for k, v in load_file(str(WEIGHTS / which / "model.safetensors")).items()}
        if not trained.exists():
            part = "model.vision_tower."
            tower = {k.removeprefix(part): v for k, v in bundled.items() if k.startswith(part)}
            model.model.vision_tower.load_state_dict(tower)
        if more:
            model.load_state_dict(bundled, strict=False)
            state.restart_average()
    return state


@dataclass
class TrainingBatch:
    """Tower `features` [B, V, D] and `places` [B, V] of images, their questions, and what `patch_words` says of every
    patch, None of images that are no scenes."""

    features: Tensor
    places: Tensor
    rows: list[list[Question]]
    labels: dict[str, Tensor] | None


def drawn_batch(
    tower: Any, easy: EasyVqa, rng: random.Random, first: int, batch: int, progress: float, dropping: float
) -> TrainingBatch:
    """Images of easy-vqa or scenes from seed `first` on; of some batches, visual tokens are dropped."""
    labels: dict[str, Tensor] | None = None
    if rng.random() < EASY_VQA_SHARE:
        images, rows = easy.batch(rng, batch)
        places = torch.arange(GRID * GRID).expand(batch, -1)
    else:
        scenes, mix = scenes_for(rng, first, batch, progress)
        images, rows = [render(s) for s in scenes], [questions_for(rng, s, mix) for s in scenes]
        places = window_places([s.window for s in scenes])
        every = [patch_words(s) for s in scenes]
        labels = {k: torch.from_numpy(np.stack([e[k] for e in every])) for k in every[0]}
    with torch.no_grad():
        features = encode(tower, pixels(images), places)[:, 1:]
    if progress > FIRST_LESSONS and rng.random() < dropping:
        kept = drop_uniformly(rng, features.shape[1], rng.uniform(0, 0.5))
        features, places = features[:, kept], places[:, kept]
        labels = labels and {k: v[:, kept] for k, v in labels.items()}
    return TrainingBatch(features, places, rows, labels)


def losses_of(
    model: Any, given: TrainingBatch, packed: Packed, progress: float, deep: bool
) -> tuple[Tensor, float, float | None]:
    """The loss to train on, that of the answers alone, and that of the spots where any question names a thing."""
    # Products in bf16 take half the time in a wide model; the residual stream, losses and weights stay fp32.
    with torch.autocast("cpu", torch.bfloat16, enabled=deep):
        ran = run(model, given.features, packed)
    logits = model.lm_head(ran.last[packed.where])
    each = F.cross_entropy(logits, packed.target, reduction="none")
    loss = (each * packed.weight).sum() / packed.weight.sum()
    answers, spots = float(loss.detach()), None
    if given.labels is not None and progress < LAST_LESSONS:
        loss = loss + 0.15 * align_loss(model, ran.visual, given.labels)
    if given.labels is not None:
        loss = loss + SHARE_WEIGHT * share_loss(ran.visual, given.labels["share"])
    if len(packed.early[0]):
        loss = loss + EARLY_WEIGHT * early_loss(model, ran.last, packed)
    if len(packed.spots[0]):
        spot = spot_loss(ran, packed)
        spots = float(spot.detach())
        loss = loss + SPOT_WEIGHT * spot
    if deep and len(packed.gaps[0]):
        loss = loss + SPOT_WEIGHT * gap_loss(ran, packed)
    return loss, answers, spots


def train_language(
    work: Path, which: str, minutes: float, batch: int = 8, more: float = 0.0, dropping: float = DROP_FRACTION
) -> None:
    """Train one of the pair for `minutes` of wall clock, resuming where a run broke off.

    `more` > 0 goes on after a finished run for that many minutes with a fresh warmup and decay; where `work` holds no
    run, from the bundled weights. Where it holds no tower, the bundled one is taken.
    """
    state = started(work, which, more)
    model: Any = state.module
    deep = len(model.model.language_model.layers) > 2  # a layer between finding two places and the answer
    easy = EasyVqa()
    start, budget = state.begin(minutes, more)
    looked = saved = time.time()
    losses: list[float] = []
    spots: list[float] = []
    while state.meta["seconds"] - start < budget:
        step = state.meta["step"]
        progress = (state.meta["seconds"] - start) / budget
        if more:  # the first lessons are learnt
            progress = max(progress, LAST_LESSONS)
        tower = model.model.vision_tower
        given = drawn_batch(tower, easy, random.Random(step), state.meta["images"], batch, progress, dropping)
        packed = pack(given.rows, given.places)
        loss, of_answers, of_spots = losses_of(model, given, packed, progress, deep)
        losses.append(of_answers)
        spots += [] if of_spots is None else [of_spots]
        loss.backward()
        rate = state.rate(budget, 100, 0.4, start)
        state.step(rate)
        state.meta["images"] += batch
        state.meta["answers"] += len(packed.answers)
        if step % 50 == 49:
            log(
                state.folder,
                step=step + 1,
                seconds=state.meta["seconds"],
                answers=state.meta["answers"],
                loss=sum(losses) / len(losses),
                spots=sum(spots) / max(1, len(spots)),
                lr=rate,
            )
            losses, spots = [], []
        if time.time() - looked > 150:
            state.swap()
            log(state.folder, step=step + 1, **accuracy(model, 64))
            state.swap()
            looked = time.time()
            state.pause()
        if time.time() - saved > 100:
            state.save()
            saved = time.time()
            state.pause()
    state.save()
    state.swap()
    log(state.folder, final=True, step=state.meta["step"], **accuracy(model, 200))


def accuracy(model: Any, number: int) -> dict[str, float]:
    """Fraction of the validation questions answered exactly, per family, on full images."""
    rows = measure({"model": model}, scene_questions(number, "validation"))
    return {family: row["model"] for family, row in rows.items()}
