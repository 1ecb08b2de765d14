"""Many questions behind one image: packed batches for training and for teacher-forced evaluation.

A row is `<bos>`, the visual tokens, and then every question with its answer, each seeing the image and itself only
and each starting at the position it would have alone. So a packed row equals its questions asked one by one, and an
answer is what greedy decoding would give exactly if every one of its tokens (the end included) is the likeliest.

Shapes: B images, V visual tokens, T text tokens of a row, S = 1 + V + T.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .questions import Question
from .vocabulary import CANVAS, GRID, IDS

_PIECES = re.compile(r"[a-z]+|\d|[^\sa-z\d]")
EARLY = 3  # words before the answer that should say how it begins
SPOT_SCALE = 3.0  # of a place in -1..1, in a residual stream of root mean square 1
CAPTION_WEIGHT = 0.25  # of a caption's token against a short answer's: a caption has some sixty of them


def encode_text(text: str) -> list[int]:
    """As the pair's tokenizer does, without its overhead (a test compares the two)."""
    return [IDS.get(piece, IDS["<unk>"]) for piece in _PIECES.findall(text.lower())]


@dataclass
class Packed:
    """`ids` [B, T]; `group` [B, T], which question a token belongs to, -1 to none; `positions` [B, S]; loss at `where`
    (row, text column) with `target` and `weight`; `answers`: per question its family and the range of its entries in
    `where`; `early`: (row, text column, first token of the answer) of the question's last words, for `early_loss`;
    `spots`: (row, text column, x-y) of the last word of every name, x-y its thing's centre in -1..1 of the canvas, for
    `spot_loss`; `gaps`: the same of the last two words of a relation, x-y from the second thing to the first, for
    `gap_loss`."""

    ids: Tensor
    group: Tensor
    positions: Tensor
    where: tuple[Tensor, Tensor]
    target: Tensor
    weight: Tensor
    answers: list[tuple[str, int, int]]
    early: tuple[Tensor, Tensor, Tensor]
    spots: tuple[Tensor, Tensor, Tensor]
    gaps: tuple[Tensor, Tensor, Tensor]

    @property
    def mask(self) -> Tensor:
        """Additive [B, 1, S, S], where the rest lies: it is by far the largest, so it is made where it is read."""
        return _mask(self.group, self.positions.shape[1] - self.group.shape[1] - 1)


def pack(rows: list[list[Question]], places: Tensor, patches: int = GRID * GRID) -> Packed:
    """Pack each image's questions behind its visual tokens at the places [B, V] of a canvas of so many patches."""
    batch, visual = places.shape

    def prompt_and_answer(q: Question) -> tuple[Question, list[int], list[int]]:
        return q, [*encode_text(q.text), IDS["<ans>"]], [*encode_text(q.answer), IDS["<eos>"]]

    texts = [[prompt_and_answer(q) for q in row] for row in rows]
    width = max(sum(len(a) + len(b) for _, a, b in row) for row in texts)
    ids = torch.full((batch, width), IDS["<pad>"])
    group = torch.full((batch, width), -1)
    positions = torch.zeros(batch, 1 + visual + width, dtype=torch.long)
    positions[:, 1 : 1 + visual] = places + 1
    where: list[tuple[int, int]] = []
    target: list[int] = []
    weight: list[float] = []
    answers: list[tuple[str, int, int]] = []
    early: list[tuple[int, int, int]] = []
    spots: list[tuple[int, int, float, float]] = []
    gaps: list[tuple[int, int, float, float]] = []
    for b, row in enumerate(texts):
        at = 0
        for number, (question, prompt, answer) in enumerate(row):
            whole = prompt + answer
            end = at + len(whole)
            ids[b, at:end] = torch.tensor(whole)
            group[b, at:end] = number
            first = 1 + patches
            positions[b, 1 + visual + at : 1 + visual + end] = torch.arange(first, first + len(whole))
            answers.append((question.family, len(target), len(target) + len(answer)))
            start = at + len(prompt) - 1  # the row of <ans> predicts the first token of the answer
            where += [(b, start + i) for i in range(len(answer))]
            target += answer
            if question.family != "caption":
                early += [(b, column, answer[0]) for column in range(max(at, start - EARLY), start)]
            named = [(b, at + column, x, y) for column, x, y in _spots(question, prompt)]
            if question.family == "relation":
                (*_, x1, y1), (*_, x2, y2) = named
                gaps += [(b, column, x1 - x2, y1 - y2) for column in (start - 1, start)]
            spots += named
            weight += [CAPTION_WEIGHT if question.family == "caption" else 1.0] * len(answer)
            at = end
    rows_at, columns_at = torch.tensor(where).reshape(-1, 2).unbind(1)
    words = torch.tensor(early).reshape(-1, 3)
    return Packed(
        ids,
        group,
        positions,
        (rows_at, columns_at),
        torch.tensor(target),
        torch.tensor(weight),
        answers,
        early=(words[:, 0], words[:, 1], words[:, 2]),
        spots=_with_places(spots),
        gaps=_with_places(gaps),
    )


def _mask(group: Tensor, visual: int) -> Tensor:
    """The additive mask [B, 1, S, S] of texts whose tokens belong to the questions `group` [B, T], -1 to none."""
    batch, width = group.shape
    size = 1 + visual + width
    device = group.device
    seen = torch.ones(size, size, dtype=torch.bool, device=device).tril().expand(batch, -1, -1).clone()
    same = (group[:, :, None] == group[:, None, :]) & (group >= 0)[:, None, :]
    seen[:, 1 + visual :, 1 + visual :] &= same | torch.eye(width, dtype=torch.bool, device=device)
    return torch.zeros(seen.shape, device=device).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def _with_places(entries: list[tuple[int, int, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor(entries).reshape(-1, 4)
    return table[:, 0].long(), table[:, 1].long(), table[:, 2:]


def _spots(question: Question, prompt: list[int]) -> Iterator[tuple[int, float, float]]:
    """Column of the last word of each name in the question, and where its thing is, -1..1 from left and top."""
    start = 0
    for name, x, y in question.named:
        pieces = encode_text(name)
        start = next(i for i in range(start, len(prompt)) if prompt[i : i + len(pieces)] == pieces) + len(pieces)
        yield start - 1, 2 * x / CANVAS - 1, 2 * y / CANVAS - 1


@dataclass
class Ran:
    """Hidden states of the text [B, T, D]: `last`, and the residual stream `halfway` and `before_last` through the
    layers; the projected image `visual` [B, V, D]."""

    last: Tensor
    halfway: Tensor
    before_last: Tensor
    visual: Tensor


def run(model: Any, features: Tensor, packed: Packed) -> Ran:
    """The language model on images' `features` [B, V, tower width] and their questions."""
    return read(model, model.model.multi_modal_projector(features), packed)


def read(model: Any, visual: Tensor, packed: Packed) -> Ran:
    """The same of what the projector made of images or clips, `visual` [B, V, D]."""
    lm = model.model.language_model
    start = lm.embed_tokens(torch.full_like(packed.ids[:, :1], IDS["<bos>"]))
    whole = torch.cat([start, visual, lm.embed_tokens(packed.ids)], dim=1)
    out = lm(
        inputs_embeds=whole,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    layers, text = len(lm.layers), 1 + visual.shape[1]
    halfway, before_last = (out.hidden_states[at][:, text:] for at in (layers // 2, layers - 1))
    return Ran(out.last_hidden_state[:, text:], halfway, before_last, visual)


def answer_logits(model: Any, features: Tensor, packed: Packed) -> Tensor:
    """Logits [answer tokens, vocabulary]; `features` [B, V, tower width]."""
    return model.lm_head(run(model, features, packed).last[packed.where])


def early_loss(model: Any, text: Tensor, packed: Packed) -> Tensor:
    """The last words of a question should already say how its answer begins; `text` from `run`.

    Without it the token before the answer learns to look at all things in the image at once, its attention
    saturates there and the question's noun, one step away, is never read: two things, and every second answer was the
    other one's for 4,000 steps. A noun that has to answer itself finds its own thing within minutes.
    """
    row, column, target = packed.early
    return F.cross_entropy(model.lm_head(text[row, column]), target)


def spot_loss(ran: Ran, packed: Packed) -> Tensor:
    """Halfway through the layers the last word of a name should know where its thing is.

    A relation compares two places. Answered with yes and no alone, it stayed at chance for 5,000 steps in both models:
    the two places have to be found, carried to one token and compared before any of it pays.
    """
    row, column, where = packed.spots
    return F.mse_loss(_place(ran.halfway[row, column]), SPOT_SCALE * where)


def gap_loss(ran: Ran, packed: Packed) -> Tensor:
    """Before the last layer the end of a relation should know how the one thing lies from the other.

    The deep model knew both places for 1,000 steps and did not compare them; one of two layers has no use for this.
    """
    row, column, where = packed.gaps
    return F.mse_loss(_place(ran.before_last[row, column]), SPOT_SCALE * where)


def _place(hidden: Tensor) -> Tensor:
    """Two fixed directions of the residual stream [N, D], read as x and y [N, 2]: nothing is added to the model.

    The stream is brought to a root mean square of 1 first, as the next layer sees it: read as it is, a deep model's
    large stream fits the target with a part too faint for the next layer to notice.
    """
    hidden = F.rms_norm(hidden, hidden.shape[-1:])
    directions = torch.zeros(hidden.shape[-1], 2, device=hidden.device)
    directions[0::2, 0] = directions[1::2, 1] = (2 / hidden.shape[-1]) ** 0.5
    return hidden @ directions


def right_answers(logits: Tensor, packed: Packed) -> list[tuple[str, bool]]:
    """Per question its family and whether greedy decoding would give the answer exactly."""
    hit = (logits.argmax(-1) == packed.target).cpu()
    return [(family, bool(hit[a:b].all())) for family, a, b in packed.answers]


def drop_uniformly(rng: random.Random, visual: int, rate: float) -> Tensor:
    """Which of V visual tokens stay when every one is dropped at the same rate, whatever it shows: ascending."""
    keep = max(1, round(visual * (1 - rate)))
    return torch.tensor(sorted(rng.sample(range(visual), keep)))
